//! One look at all statistics of a machine.

use super::binary::{Kind, Layout, ReadAt, StatsError, Unit};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A statistics file, of the VM or of a vCPU.
#[derive(Debug)]
pub struct Source<F> {
    file: F,
    layout: Layout,
}

impl<F: ReadAt> Source<F> {
    /// Reads the file's unchanging part.
    ///
    /// # Errors
    /// [`StatsError`].
    pub fn new(file: F) -> Result<Self, StatsError> {
        let layout = Layout::read(&file)?;
        Ok(Self { file, layout })
    }

    /// Reads the numbers.
    ///
    /// # Errors
    /// [`StatsError`].
    pub fn group(&self) -> Result<Group, StatsError> {
        let values = self.layout.values(&self.file)?;
        let statistics = self
            .layout
            .descriptors
            .iter()
            .zip(values)
            .map(|(d, values)| Statistic {
                name: d.name.clone(),
                unit: unit(d.unit, d.exponent, d.power_of_two),
                grows: matches!(d.kind, Kind::Cumulative | Kind::LinearHistogram | Kind::LogHistogram),
                histogram: matches!(d.kind, Kind::LinearHistogram | Kind::LogHistogram),
                values,
            })
            .collect();
        Ok(Group { id: self.layout.id.clone(), statistics })
    }
}

/// A unit as people write it; empty for plain counts.
fn unit(unit: Unit, exponent: i16, power_of_two: bool) -> String {
    let name = match unit {
        Unit::None | Unit::Boolean => "",
        Unit::Bytes => "B",
        Unit::Seconds => "s",
        Unit::Cycles => "cycles",
        Unit::Other(_) => "?",
    };
    match (exponent, power_of_two) {
        (0, _) => name.to_owned(),
        (-9, false) => format!("n{name}"),
        (-6, false) => format!("u{name}"),
        (-3, false) => format!("m{name}"),
        (10, true) => format!("Ki{name}"),
        (20, true) => format!("Mi{name}"),
        (e, two) => format!("{}^{e} {name}", if two { 2 } else { 10 }),
    }
}

/// All statistics of a machine at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The monitor's process.
    pub pid: u32,
    /// The back end and why it was chosen.
    pub back_end: String,
    /// Milliseconds since the guest started.
    pub uptime_ms: u64,
    /// Why there are no statistics, if there are none.
    pub absent: Option<String>,
    /// The VM's, then each vCPU's.
    pub groups: Vec<Group>,
}

/// Tells whoever asks; `look` finds the numbers, or why there are none.
#[derive(Debug)]
pub struct Teller<L> {
    pid: u32,
    back_end: String,
    start: Instant,
    look: L,
}

impl<L: Fn() -> Result<Vec<Group>, String>> Teller<L> {
    /// For a machine of this process that starts now.
    pub fn new(back_end: String, look: L) -> Self {
        Self { pid: std::process::id(), back_end, start: Instant::now(), look }
    }

    /// A snapshot, as [`fetch`](super::fetch) reads it.
    pub fn tell(&self) -> Vec<u8> {
        let (groups, absent) = match (self.look)() {
            Ok(groups) => (groups, None),
            Err(reason) => (Vec::new(), Some(reason)),
        };
        let snapshot = Snapshot {
            pid: self.pid,
            back_end: self.back_end.clone(),
            uptime_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            absent,
            groups,
        };
        serde_json::to_vec(&snapshot).unwrap_or_default()
    }
}

/// The statistics of a VM or of a vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Whose.
    pub id: String,
    /// In the hypervisor's order.
    pub statistics: Vec<Statistic>,
}

/// One statistic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistic {
    /// The hypervisor's name for it.
    pub name: String,
    /// Its unit, empty for plain counts.
    pub unit: String,
    /// It only grows, so that its rate means something.
    pub grows: bool,
    /// The values are counts by ranges.
    pub histogram: bool,
    /// One value, or one for each range.
    pub values: Vec<u64>,
}

impl Statistic {
    /// The value; of a histogram the sum of its counts.
    pub fn total(&self) -> u64 {
        self.values.iter().fold(0, |sum, v| sum.saturating_add(*v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(unit(Unit::None, 0, false), "");
        assert_eq!(unit(Unit::Seconds, -9, false), "ns");
        assert_eq!(unit(Unit::Bytes, 20, true), "MiB");
        assert_eq!(unit(Unit::Bytes, 5, false), "10^5 B");
    }
}
