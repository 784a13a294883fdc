//! Names of the built-in provisioner of local volumes, which controller, agent and server agree on.
//!
//! The controller writes the volume, the agent of its node makes the directory when it is first mounted. A volume keeps
//! [`FINALIZER`] until that agent has removed the directory; so a node that is away loses nothing and leaks nothing.

/// The provisioner, as StorageClasses name it.
pub const PROVISIONER: &str = "orch.io/local-path";
/// The StorageClass that every cluster begins with.
pub const CLASS: &str = "local-path";
/// On a Node: the directory in which its volumes are made.
pub const NODE_DIRECTORY: &str = "orch.io/local-path-directory";
/// Label of a volume: the node that has its data.
pub const NODE_LABEL: &str = "orch.io/local-path-node";
/// Keeps a volume until its data are gone.
pub const FINALIZER: &str = "orch.io/local-path-data";
/// On a volume: `directory` or `loop`.
pub const TYPE: &str = "orch.io/local-path-type";
/// Parameter of a StorageClass: `directory` (not limited in size), or `loop` (a file with a file system of exactly the size).
pub const TYPE_PARAMETER: &str = "type";
/// A plain directory.
pub const DIRECTORY: &str = "directory";
/// A file of the volume's size, shown as a loop device.
pub const LOOP: &str = "loop";
