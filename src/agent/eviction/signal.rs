//! What an eviction can be about: the signals of upstream's `pkg/kubelet/eviction/api`, each with the resource that runs short and
//! the condition of the node that it brings.

/// A condition of the node under which it takes fewer pods, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    pub const ALL: [Self; 3] = [Self::Memory, Self::Disk, Self::Pid];

    /// The type of the node's condition.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }

    /// Reason and message of the condition, in the words of upstream's `nodestatus` setters.
    pub fn words(self, is_on: bool) -> (&'static str, &'static str) {
        match (self, is_on) {
            (Self::Memory, false) => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            (Self::Memory, true) => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            (Self::Disk, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::Disk, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::Pid, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            (Self::Pid, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
        }
    }

    /// Reason of the event that says that it came or went.
    pub fn event(self, is_on: bool) -> &'static str {
        match (self, is_on) {
            (Self::Memory, false) => "NodeHasSufficientMemory",
            (Self::Memory, true) => "NodeHasInsufficientMemory",
            (Self::Disk, false) => "NodeHasNoDiskPressure",
            (Self::Disk, true) => "NodeHasDiskPressure",
            (Self::Pid, false) => "NodeHasSufficientPID",
            (Self::Pid, true) => "NodeHasInsufficientPID",
        }
    }
}

/// A figure of the node that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    /// What the node's pods together may still use of the memory that is theirs.
    AllocatableMemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

impl Signal {
    pub const ALL: [Self; 7] = [
        Self::MemoryAvailable,
        Self::AllocatableMemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// As flags name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::AllocatableMemoryAvailable => "allocatableMemory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The signal of that name.
    ///
    /// # Errors
    /// Upstream's words, and the names there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|signal| signal.name() == name);
        known.ok_or_else(|| format!("unrecognized eviction signal {name}: one of {}", Self::ALL.map(Self::name).join(", ")))
    }

    /// What runs short.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The condition that it brings.
    pub fn pressure(self) -> Pressure {
        match self {
            Self::MemoryAvailable | Self::AllocatableMemoryAvailable => Pressure::Memory,
            Self::NodefsAvailable | Self::NodefsInodesFree | Self::ImagefsAvailable | Self::ImagefsInodesFree => Pressure::Disk,
            Self::PidAvailable => Pressure::Pid,
        }
    }

    /// Whether it counts bytes; else it counts things.
    pub fn is_bytes(self) -> bool {
        !matches!(self, Self::NodefsInodesFree | Self::ImagefsInodesFree | Self::PidAvailable)
    }
}
