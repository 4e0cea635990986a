//! Snapshots as tables: one row for each statistic, one column for the VM or each vCPU.

use stats::{Snapshot, Statistic};
use std::fmt::Write;

/// Process, age and back end, in one line.
pub fn heading(snapshot: &Snapshot) -> String {
    let seconds = snapshot.uptime_ms / 1000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{}  up {hours}:{minutes:02}:{seconds:02}  {}", snapshot.pid, snapshot.back_end)
}

/// A statistic of the VM, of its vCPUs, or of both.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The name, with its unit.
    pub name: String,
    /// The VM counts it itself.
    of_vm: bool,
    /// The value now.
    pub total: u64,
    /// Growth a second, for what only grows.
    pub rate: Option<f64>,
    /// The value of each vCPU that has it.
    pub parts: Vec<u64>,
}

fn name(statistic: &Statistic) -> String {
    let events = if statistic.histogram { " (events)" } else { "" };
    match (statistic.unit.as_str(), statistic.histogram) {
        ("", _) | (_, true) => format!("{}{events}", statistic.name),
        (unit, false) => format!("{} [{unit}]", statistic.name),
    }
}

/// All rows of a snapshot: the VM's statistics first, then those that only vCPUs have, summed.
/// With an earlier snapshot of the same machine, rates too.
pub fn rows(now: &Snapshot, before: Option<&Snapshot>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    // The first group is the VM's. What it counts itself is not the vCPUs' sum again.
    for (index, group) in now.groups.iter().enumerate() {
        for statistic in &group.statistics {
            let (name, value) = (name(statistic), statistic.total());
            let row = match rows.iter().position(|row| row.name == name) {
                Some(at) => &mut rows[at],
                None => {
                    let rate = statistic.grows.then_some(0.0);
                    rows.push(Row { name, of_vm: index == 0, total: 0, rate, parts: Vec::new() });
                    let last = rows.len() - 1;
                    &mut rows[last]
                }
            };
            if index > 0 {
                row.parts.push(value);
            }
            if index == 0 || !row.of_vm {
                row.total = row.total.saturating_add(value);
            }
        }
    }
    let Some(before) = before else {
        rows.iter_mut().for_each(|row| row.rate = None);
        return rows;
    };
    let seconds = now.uptime_ms.saturating_sub(before.uptime_ms) as f64 / 1000.0;
    for (row, old) in rows.iter_mut().zip(self::rows(before, None)) {
        row.rate = match row.rate {
            Some(_) if seconds > 0.0 && row.name == old.name => {
                Some(row.total.saturating_sub(old.total) as f64 / seconds)
            }
            _ => None,
        };
    }
    rows
}

/// A snapshot as plain text, without what has not happened.
pub fn text(snapshot: &Snapshot) -> String {
    let mut text = heading(snapshot);
    text.push('\n');
    if let Some(reason) = &snapshot.absent {
        let _ = writeln!(text, "no statistics: {reason}");
    }
    for row in rows(snapshot, None).iter().filter(|row| row.total > 0) {
        let _ = write!(text, "{:<36} {:>16}", row.name, row.total);
        if row.parts.len() > 1 {
            for part in &row.parts {
                let _ = write!(text, " {part:>14}");
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use stats::Group;

    fn statistic(name: &str, grows: bool, values: &[u64]) -> Statistic {
        Statistic { name: name.into(), unit: String::new(), grows, histogram: values.len() > 1, values: values.into() }
    }

    fn snapshot(uptime_ms: u64, exits: [u64; 2]) -> Snapshot {
        let vcpu = |n: usize| Group {
            id: format!("kvm-1/vcpu-{n}"),
            statistics: vec![statistic("exits", true, &[exits[n]]), statistic("halts", true, &[4 + n as u64])],
        };
        let of_vm = vec![statistic("pages", false, &[7]), statistic("halts", true, &[9])];
        let vm = Group { id: "kvm-1".into(), statistics: of_vm };
        Snapshot { pid: 5, back_end: "soft".into(), uptime_ms, absent: None, groups: vec![vm, vcpu(0), vcpu(1)] }
    }

    #[test]
    fn vcpus_are_summed_and_rates_are_per_second() {
        let rows = rows(&snapshot(3000, [70, 30]), Some(&snapshot(1000, [10, 10])));
        let exits = rows.iter().find(|r| r.name == "exits").unwrap();
        assert_eq!((exits.total, exits.rate, &exits.parts[..]), (100, Some(40.0), &[70, 30][..]));
        let pages = rows.iter().find(|r| r.name == "pages").unwrap();
        assert_eq!((pages.total, pages.rate, &pages.parts[..]), (7, None, &[][..]));
        let halts = rows.iter().find(|r| r.name == "halts").unwrap();
        assert_eq!((halts.total, &halts.parts[..]), (9, &[4, 5][..]), "the VM's own count is the sum");
    }

    #[test]
    fn text_has_heading_and_values_only_of_what_happened() {
        let text = text(&snapshot(3_661_000, [5, 0]));
        assert!(text.starts_with("5  up 1:01:01  soft\n"), "{text}");
        assert!(text.contains("exits"));
        assert!(!self::text(&snapshot(0, [0, 0])).contains("exits"));
    }

    #[test]
    fn absence_is_told() {
        let snapshot = Snapshot { absent: Some("none here".into()), groups: vec![], ..snapshot(0, [0, 0]) };
        assert!(text(&snapshot).contains("no statistics: none here"));
    }
}
