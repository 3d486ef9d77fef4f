use super::*;

fn lines<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(start)).collect()
}

#[test]
fn every_family_of_a_lane_stands_at_zero_or_unknown_from_the_start() {
    let recorder = Recorder::new();
    for lane in Lane::ALL {
        recorder.lane(lane);
    }
    for component in Component::ALL {
        recorder.component_up(component).set(0.0);
    }
    recorder.redis_memory();
    recorder.chunks_dropped().increment(0);
    let text = recorder.render();
    assert!(text.contains("aegis_chunks_dropped_total 0\n"), "{text}");
    for name in [
        "aegis_entries_read_total",
        "aegis_events_written_total",
        "aegis_events_duplicate_total",
        "aegis_entries_reclaimed_total",
        "aegis_entries_lost_total",
        "aegis_entries_trimmed_total",
        "aegis_trimming_held_seconds",
        "aegis_groups_recreated_total",
        "aegis_dead_letters_dropped_total",
        "aegis_events_forwarded_total",
        "aegis_events_passed_total",
        "aegis_renewed_total",
        "aegis_batches_in_flight",
        "aegis_batch_events_count",
        "aegis_write_duration_seconds_count",
        "aegis_ingest_latency_seconds_count",
    ] {
        for lane in Lane::ALL {
            assert!(text.contains(&format!("{name}{{lane=\"{lane}\"}} 0\n")), "{name} of {lane}:\n{text}");
        }
    }
    for name in ["length", "lag", "pending"] {
        assert!(text.contains(&format!("aegis_stream_{name}{{lane=\"sessions\"}} NaN\n")), "{name}");
    }
    assert_eq!(lines(&text, "aegis_events_dead_total{").len(), Lane::ALL.len() * Code::ALL.len());
    assert_eq!(lines(&text, "aegis_retries_total{").len(), 2 * Lane::ALL.len());
    assert!(text.contains("aegis_retries_total{lane=\"embeddings\",component=\"chroma\"} 0\n"));
    assert!(text.contains("aegis_component_up{component=\"database\"} 0\n"));
    assert!(text.contains("aegis_redis_memory_used_bytes NaN\n"));
    assert!(text.contains(&format!("aegis_build_info{{version=\"{}\"", env!("CARGO_PKG_VERSION"))));
    assert!(text.contains("aegis_batch_events_bucket{lane=\"sessions\",le=\"5000\"} 0\n"), "buckets, not a summary");
    assert!(text.contains("aegis_write_duration_seconds_bucket{lane=\"sessions\",le=\"0.001\"} 0\n"));
}

#[test]
fn every_series_has_a_help_and_one_type_line() {
    let recorder = Recorder::new();
    recorder.lane(Lane::Interactions);
    recorder.redis_memory();
    let text = recorder.render();
    let types: Vec<_> = lines(&text, "# TYPE ").iter().filter_map(|line| line.split(' ').nth(2)).collect();
    for name in &types {
        assert_eq!(lines(&text, &format!("# HELP {name} ")).len(), 1, "{name}");
        assert_eq!(types.iter().filter(|other| *other == name).count(), 1, "{name}");
    }
    for series in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = series.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(types.contains(&name) || types.contains(&base), "{series}");
    }
}

#[test]
fn only_configured_lanes_appear() {
    let recorder = Recorder::new();
    assert!(!recorder.render().contains("lane="));
    recorder.lane(Lane::Embeddings);
    let text = recorder.render();
    assert!(text.contains("lane=\"embeddings\"") && !text.contains("lane=\"sessions\""));
}

#[test]
fn handles_count_under_their_own_labels_and_clones_in_the_same_place() {
    let recorder = Recorder::new();
    let lane = recorder.lane(Lane::Interactions);
    for (at, code) in Code::ALL.into_iter().enumerate() {
        lane.events_dead(code).increment(at as u64 + 1);
    }
    lane.retries(Component::Redis).increment(2);
    lane.retries(Component::Database).increment(3);
    lane.clone().entries_read.increment(4);
    recorder.lane(Lane::Interactions).entries_read.increment(5);
    lane.write_duration.record(0.004);
    recorder.upkeep();
    let text = recorder.render();
    for (at, code) in Code::ALL.into_iter().enumerate() {
        let line = format!("aegis_events_dead_total{{lane=\"interactions\",code=\"{}\"}} {}\n", code.name(), at + 1);
        assert!(text.contains(&line), "{line}");
    }
    assert!(text.contains("aegis_retries_total{lane=\"interactions\",component=\"redis\"} 2\n"));
    assert!(text.contains("aegis_retries_total{lane=\"interactions\",component=\"database\"} 3\n"));
    assert!(text.contains("aegis_entries_read_total{lane=\"interactions\"} 9\n"));
    assert!(text.contains("aegis_write_duration_seconds_bucket{lane=\"interactions\",le=\"0.0025\"} 0\n"));
    assert!(text.contains("aegis_write_duration_seconds_bucket{lane=\"interactions\",le=\"0.005\"} 1\n"));
}

#[test]
fn an_unknown_lag_is_not_a_number() {
    let recorder = Recorder::new();
    let lane = recorder.lane(Lane::Sessions);
    let state = StreamState {
        length: 7,
        lag: None,
        pending: 2,
        oldest_unacknowledged: Duration::from_millis(1500),
        ..StreamState::default()
    };
    lane.set_streams(&state);
    let text = recorder.render();
    assert!(text.contains("aegis_stream_length{lane=\"sessions\"} 7\n"));
    assert!(text.contains("aegis_stream_lag{lane=\"sessions\"} NaN\n"));
    assert!(text.contains("aegis_oldest_unacknowledged_seconds{lane=\"sessions\"} 1.5\n"));
    lane.set_streams(&StreamState { lag: Some(0), ..state });
    assert!(recorder.render().contains("aegis_stream_lag{lane=\"sessions\"} 0\n"));
    lane.set_streams_unknown();
    assert!(recorder.render().contains("aegis_stream_length{lane=\"sessions\"} NaN\n"));
}

#[test]
fn latencies_stand_in_cumulative_buckets_whichever_way_they_came() {
    let recorder = Recorder::new();
    let latency = recorder.lane(Lane::Interactions).ingest_latency;
    let mut batch = LatencyBatch::new();
    batch.add(-5, 1); // From the future.
    batch.add(0, 1);
    batch.add(1, 2);
    batch.add(60_000, 3);
    batch.add(i64::MAX, 1);
    batch.flush(&latency);
    batch.flush(&latency); // Empty by now.
    latency.observe_many(0.0007, 10);
    latency.observe_many(f64::NAN, 1);
    assert_eq!(latency.count(), 19);
    let text = recorder.render();
    for (bound, count) in [("0.0005", 3), ("0.001", 15), ("30", 15), ("60", 18), ("86400", 18), ("+Inf", 19)] {
        let line = format!("aegis_ingest_latency_seconds_bucket{{lane=\"interactions\",le=\"{bound}\"}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    assert!(text.contains("aegis_ingest_latency_seconds_count{lane=\"interactions\"} 19\n"));
}

#[test]
fn the_sum_of_latencies_is_in_seconds() {
    let recorder = Recorder::new();
    let latency = recorder.lane(Lane::Sessions).ingest_latency;
    let mut batch = LatencyBatch::new();
    batch.add(250, 4);
    batch.flush(&latency);
    latency.observe_many(1.5, 2);
    assert!(recorder.render().contains("aegis_ingest_latency_seconds_sum{lane=\"sessions\"} 4\n"));
}

#[test]
fn a_worker_needs_redis_and_the_stores_of_its_lanes() {
    use Component::{Chroma, Database, Redis};
    assert_eq!(Component::needed_by(&[Lane::Sessions]), [Redis, Database]);
    assert_eq!(Component::needed_by(&[Lane::Embeddings]), [Redis, Chroma]);
    assert_eq!(Component::needed_by(&Lane::ALL), [Redis, Database, Chroma]);
}
