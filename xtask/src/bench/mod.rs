//! Measurements against named peers, each pair in one run. Results go into BENCHMARKS.md by hand, with their command.
pub mod boot;
pub mod exits;
pub mod footprint;

/// The median of `values`; 0 if there are none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
