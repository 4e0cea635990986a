//! The live view.

use super::StatError;
use super::table::{self, Row};
use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Table, TableState};
use stats::Snapshot;
use std::time::{Duration, Instant};

/// Time between two looks at the machine.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is shown.
struct View {
    now: Snapshot,
    before: Option<Snapshot>,
    /// Rows that never were anything but zero are shown too.
    all: bool,
    table: TableState,
}

/// Shows a machine until the user leaves or it ends.
pub fn run(pid: u32) -> Result<(), StatError> {
    let now = stats::fetch(pid)?;
    let mut view = View { now, before: None, all: false, table: TableState::default() };
    // Restores the terminal on panics too.
    let terminal = ratatui::try_init()?;
    let result = live(terminal, &mut view);
    ratatui::restore();
    result
}

fn live(mut terminal: DefaultTerminal, view: &mut View) -> Result<(), StatError> {
    let mut next = Instant::now() + INTERVAL;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        if event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                match key.code {
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('a') => view.all = !view.all,
                    KeyCode::Down | KeyCode::Char('j') => view.table.scroll_down_by(1),
                    KeyCode::Up | KeyCode::Char('k') => view.table.scroll_up_by(1),
                    KeyCode::PageDown => view.table.scroll_down_by(20),
                    KeyCode::PageUp => view.table.scroll_up_by(20),
                    _ => {}
                }
            }
            continue;
        }
        next = Instant::now() + INTERVAL;
        let fresh = stats::fetch(view.now.pid)?;
        view.before = Some(std::mem::replace(&mut view.now, fresh));
    }
}

impl View {
    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [top, body, bottom] =
            Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Paragraph::new(table::heading(&self.now)).style(bold), top);
        if let Some(reason) = &self.now.absent {
            frame.render_widget(Paragraph::new(format!("no statistics: {reason}")), body);
        } else {
            let mut rows = table::rows(&self.now, self.before.as_ref());
            rows.retain(|row| self.all || row.total > 0);
            // What happens most is on top; what does not change keeps its order.
            rows.sort_by(|a, b| b.rate.unwrap_or(-1.0).total_cmp(&a.rate.unwrap_or(-1.0)));
            let widths = [Constraint::Length(36), Constraint::Length(16), Constraint::Length(14), Constraint::Fill(1)];
            let table = Table::new(rows.iter().map(line), widths)
                .header(TableRow::new(["statistic", "total", "per second", "by vCPU"]).style(bold))
                .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
            frame.render_stateful_widget(table, body, &mut self.table);
        }
        frame.render_widget(Paragraph::new("q quit   a all or non-zero   arrows scroll"), bottom);
    }
}

fn line(row: &Row) -> TableRow<'static> {
    let rate = row.rate.map_or(String::new(), |rate| format!("{rate:.0}"));
    let parts: Vec<_> = row.parts.iter().map(u64::to_string).collect();
    TableRow::new([
        Cell::new(row.name.clone()),
        Cell::new(format!("{:>14}", row.total)),
        Cell::new(format!("{rate:>12}")),
        Cell::new(parts.join(" ")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use stats::{Group, Statistic};

    fn snapshot(uptime_ms: u64, exits: u64) -> Snapshot {
        let statistic = |name: &str, value| Statistic {
            name: name.into(),
            unit: String::new(),
            grows: true,
            histogram: false,
            values: vec![value],
        };
        let statistics = vec![statistic("hypercalls", 0), statistic("exits", exits)];
        let groups = vec![Group { id: "kvm-1/vcpu-0".into(), statistics }];
        Snapshot { pid: 5, back_end: "soft".into(), uptime_ms, absent: None, groups }
    }

    #[test]
    fn the_screen_shows_totals_and_rates() {
        let mut view = View {
            now: snapshot(2000, 1500),
            before: Some(snapshot(1000, 500)),
            all: false,
            table: TableState::default(),
        };
        let mut terminal = Terminal::new(TestBackend::new(80, 8)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let screen = terminal.backend().to_string();
        assert!(screen.contains("5  up 0:00:02  soft"), "{screen}");
        assert!(screen.contains("exits") && screen.contains("1500") && screen.contains("1000"), "{screen}");
        assert!(!screen.contains("hypercalls"), "{screen}");
        view.all = true;
        terminal.draw(|frame| view.draw(frame)).unwrap();
        assert!(terminal.backend().to_string().contains("hypercalls"));
    }
}
