//! Statistics of a running machine: read from the hypervisor, served on a
//! socket, read back by `rekvm stat`.

pub mod binary;
mod server;
mod snapshot;
mod socket;

pub use server::Server;
pub use snapshot::{Group, Snapshot, Source, SourceError, Statistic};
pub use socket::{SocketError, fetch, running};
