//! Statistics of a running machine: read in the ABI's binary format, told on a socket, read back by `rekvm stat`.

pub mod binary;
mod server;
mod snapshot;
pub mod socket;

pub use server::Server;
pub use snapshot::{Group, Snapshot, Source, Statistic, Teller};
pub use socket::{SocketError, fetch, running};
