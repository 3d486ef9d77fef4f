use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::*;

const REFUSED: &str = "connection refused";

fn failure() -> Result<(), String> {
    Err(REFUSED.to_owned())
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Keeps the lines above debug as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text(event.metadata().level().to_string());
        event.record(&mut text);
        lock(&self.0).push(text.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn lines_of(speak: impl FnOnce()) -> Vec<String> {
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), speak);
    lock(&lines.0).clone()
}

#[test]
fn a_component_starts_and_is_up_after_its_first_answer() {
    let recorder = Recorder::new();
    let health = Health::new(&recorder, &[Lane::Sessions]);
    assert!(!health.ready());
    assert_eq!(
        health.snapshot(),
        (false, r#"{"status":"not ready","components":{"redis":"starting","database":"starting"}}"#.to_owned())
    );
    health.report(Component::Redis, Ok(()));
    assert!(!health.ready());
    health.report(Component::Database, Ok(()));
    assert!(health.ready());
    assert_eq!(health.snapshot(), (true, r#"{"status":"ready","components":{"redis":"up","database":"up"}}"#.to_owned()));
    assert!(recorder.render().contains("aegis_component_up{component=\"redis\"} 1\n"));
}

#[test]
fn a_component_that_no_lane_needs_changes_nothing() {
    let recorder = Recorder::new();
    let health = Health::new(&recorder, &[Lane::Embeddings]);
    health.report(Component::Database, failure());
    assert_eq!(health.conditions(), [(Component::Redis, Condition::Starting), (Component::Chroma, Condition::Starting)]);
    assert!(!recorder.render().contains("component=\"database\""));
}

#[test]
fn one_failure_between_two_answers_is_no_outage() {
    let start = Instant::now();
    let mut course = Course::new(start);
    assert_eq!(course.take(true, start), Turn::Up);
    // Four writers lose the same connection at once; the next try gets through.
    for late in 0..4 {
        assert_eq!(course.take(false, start + ms(900 + late)), Turn::None);
    }
    assert_eq!(course.take(true, start + ms(1_000)), Turn::None);
    assert_eq!(course.take(false, start + ms(1_900)), Turn::None, "the count starts again");
}

#[test]
fn the_second_probe_in_a_row_that_fails_means_down_and_the_first_answer_means_up() {
    let start = Instant::now();
    let mut course = Course::new(start);
    course.take(true, start);
    assert_eq!(course.take(false, start + ms(1_000)), Turn::None);
    assert_eq!(course.take(false, start + ms(2_000)), Turn::Down);
    assert_eq!(course.take(false, start + ms(3_000)), Turn::None, "told once");
    assert_eq!(course.take(true, start + ms(4_000)), Turn::Back { outage: ms(3_000) });
    assert_eq!(course.take(true, start + ms(5_000)), Turn::None);
}

#[test]
fn a_probe_that_ran_into_its_deadline_means_down_at_once() {
    let start = Instant::now();
    let mut course = Course::new(start);
    course.take(true, start);
    assert_eq!(course.take(false, start + ms(2_500)), Turn::Down);
}

#[test]
fn a_component_that_never_answered_is_down_after_a_while() {
    let start = Instant::now();
    let mut course = Course::new(start);
    assert_eq!(course.take(false, start), Turn::None);
    assert_eq!(course.condition, Condition::Starting);
    assert_eq!(course.take(false, start + ms(1_000)), Turn::Down);
}

#[test]
fn an_outage_is_two_lines_and_the_snapshot_holds_no_error_text() {
    let recorder = Recorder::new();
    let health = Health::new(&recorder, &[Lane::Sessions]);
    let start = Instant::now();
    let lines = lines_of(|| {
        health.report_at(Component::Redis, Ok(()), start);
        for second in 1..60 {
            health.report_at(Component::Redis, failure(), start + ms(second * 1_000));
        }
        assert!(recorder.render().contains("aegis_component_up{component=\"redis\"} 0\n"));
        assert!(!health.snapshot().1.contains(REFUSED));
        health.report_at(Component::Redis, Ok(()), start + ms(61_000));
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("WARN") && lines[0].contains(REFUSED), "{lines:?}");
    assert!(lines[1].starts_with("INFO") && lines[1].contains("outage_seconds=60.0"), "{lines:?}");
    assert!(recorder.render().contains("aegis_component_up{component=\"redis\"} 1\n"));
}

#[test]
fn writers_that_wait_for_the_same_store_log_one_line_when_it_starts_and_one_when_it_ends() {
    let recorder = Recorder::new();
    let metrics = recorder.lane(Lane::Sessions);
    let mut first = Outage::new(&metrics, Component::Database);
    let mut second = first.clone();
    let mut third = first.clone();
    let lines = lines_of(|| {
        third.recovered();
        for _ in 0..10 {
            first.failed(REFUSED);
            second.failed(REFUSED);
        }
        third.recovered();
        first.recovered();
        first.failed(REFUSED);
        second.recovered();
        first.recovered();
        first.recovered();
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("WARN") && lines[0].contains(REFUSED) && lines[0].contains("database"), "{lines:?}");
    assert!(lines[1].starts_with("INFO") && lines[1].contains("tries=21"), "{lines:?}");
    assert!(recorder.render().contains("aegis_retries_total{lane=\"sessions\",component=\"database\"} 21\n"));
}

#[test]
fn a_writer_that_is_stopped_while_it_waits_says_nothing_and_leaves_nothing_behind() {
    let recorder = Recorder::new();
    let metrics = recorder.lane(Lane::Sessions);
    let mut first = Outage::new(&metrics, Component::Redis);
    let lines = lines_of(|| {
        let mut second = first.clone();
        second.failed(REFUSED);
        assert!(second.waits() && !first.waits());
        drop(second);
        first.failed(REFUSED);
        first.recovered();
    });
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[2].contains("tries=1"), "{lines:?}");
}
