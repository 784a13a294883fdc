//! CSI: storage drivers that run as containers of the node. They register by a socket ([`registry`]), are called over gRPC ([`rpc`],
//! [`driver`]), and make volumes appear in directories of pods ([`mount`]). As the kubelet's `pkg/volume/csi`.

mod driver;
mod mount;
mod proto;
mod registry;
mod rpc;

pub use mount::CsiMounts;
pub use registry::Drivers;
