//! What people read on a terminal: aligned tables, numbers with units, colour where there is a terminal.

use std::io::{self, ErrorKind, IsTerminal, Write as _};

/// Whether output may hold colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    colour: bool,
}

/// How a text stands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// Headings.
    Bold,
    /// Good.
    Green,
    /// Worth a look.
    Yellow,
    /// Bad.
    Red,
}

impl Style {
    /// For standard output: colour on a terminal, unless `NO_COLOR` is set (<https://no-color.org>) or the terminal is dumb.
    pub(super) fn stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colour: !unwanted && !dumb && io::stdout().is_terminal() }
    }

    /// Without colour.
    #[cfg(test)]
    pub(super) const fn plain() -> Self {
        Self { colour: false }
    }

    /// The text, painted if there is colour.
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Bold => 1,
            Paint::Green => 32,
            Paint::Yellow => 33,
            Paint::Red => 31,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A column: its heading and on which side its cells stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Texts.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Rows under headings, each column as wide as its widest cell.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty, and control characters are made visible.
    pub(super) fn row<const N: usize>(&mut self, cells: &[String; N]) {
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    /// Whether it has no row.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines, each with its line feed.
    pub(super) fn render(&self, style: Style) -> String {
        let width = |text: &str| text.chars().count();
        let heading = |column: &Column| match column {
            Column::Left(heading) | Column::Right(heading) => *heading,
        };
        let widths: Vec<usize> = (self.columns.iter().enumerate())
            .map(|(i, column)| {
                let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| width(cell));
                cells.chain([width(heading(column))]).max().unwrap_or_default()
            })
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for ((column, width_max), cell) in self.columns.iter().zip(&widths).zip(cells) {
                let padding = " ".repeat(width_max - width(cell));
                let (before, after) = if let Column::Right(_) = column { (padding.as_str(), "") } else { ("", padding.as_str()) };
                for piece in [before, cell, after, "  "] {
                    line.push_str(piece);
                }
            }
            line.trim_end().to_owned()
        };
        let mut text = style.paint(Paint::Bold, &line(&mut self.columns.iter().map(heading)));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&line(&mut row.iter().map(String::as_str)));
            text.push('\n');
        }
        text
    }
}

/// Writes to standard output. Returns whether anybody reads on: one that has seen enough and left (`| head`) is no failure.
///
/// # Errors
/// Standard output's own, such as a full disk.
pub(super) fn say(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        done => done.map(|()| true),
    }
}

/// Whether a terminal might act on the character, or show text in another order because of it.
pub(super) fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text with everything that a terminal might act on made visible.
pub(super) fn clean(text: &str) -> String {
    if !text.contains(is_active) {
        return text.to_owned();
    }
    text.chars().map(|c| if is_active(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// Bytes with the unit that leaves one to four digits.
pub(super) fn bytes(count: u64) -> String {
    let mut size = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

/// Milliseconds in the two largest units that matter.
pub(super) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{}.{}s", s, ms % 1000 / 100),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A number with a comma at each thousand.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 dead letter`, `1,200 dead letters`.
pub(super) fn counted(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", grouped(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_do_not_trail() {
        let mut table = Table::new(&[Column::Left("stream"), Column::Right("length"), Column::Left("why")]);
        table.row(&["aegis:interactions".to_owned(), "7".to_owned(), String::new()]);
        table.row(&["ä".to_owned(), "1234567".to_owned(), "x\x1b[2J\n".to_owned()]);
        assert!(!table.is_empty());
        assert_eq!(
            table.render(Style::plain()),
            "stream               length  why\n\
             aegis:interactions        7\n\
             ä                   1234567  x\\u{1b}[2J\\u{a}\n"
        );
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(1023), bytes(1536), bytes(3 << 30)], ["1023 B", "1.5 KiB", "3.0 GiB"]);
        assert_eq!(
            [age(250), age(1250), age(61_000), age(3_660_000), age(90_000_000)],
            ["250ms", "1.2s", "1m 01s", "1h 01m", "1d 01h"]
        );
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "entry-ish"), counted(2, "dead letter")], ["1 entry-ish", "2 dead letters"]);
    }
}
