//! How the members of the consensus group talk: openraft's calls as bytes over a [`Transport`] that is handed in.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::BasicNode;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Raft, TypeConfig};

/// The calls between members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    AppendEntries,
    InstallSnapshot,
    Vote,
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection: openraft waits before it tries again.
    #[error("server {0} cannot be reached: {1}")]
    Unreachable(u64, String),
    /// The bytes of a call or an answer could not be read.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Carries calls to other members.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends a call to the member `target` at `address`, and returns the bytes that its [`answer`] made.
    ///
    /// # Errors
    /// [`TransportError::Unreachable`] also when `deadline` has passed.
    async fn call(
        &self,
        target: u64,
        address: &str,
        call: Call,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;
}

/// The transport of a group of one: there is nobody to call.
pub struct NoTransport;

#[async_trait]
impl Transport for NoTransport {
    async fn call(&self, target: u64, address: &str, _: Call, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable(target, format!("this server was started without a way to reach {address}")))
    }
}

/// Answers a call that came from another member.
///
/// # Errors
/// [`TransportError::Malformed`]; an error of the consensus layer is an answer.
pub(super) async fn answer(raft: &Raft, call: Call, body: &[u8]) -> Result<Bytes, TransportError> {
    match call {
        Call::AppendEntries => encode(&raft.append_entries(decode(body)?).await),
        Call::InstallSnapshot => encode(&raft.install_snapshot(decode(body)?).await),
        Call::Vote => encode(&raft.vote(decode(body)?).await),
    }
}

fn encode(value: &impl Serialize) -> Result<Bytes, TransportError> {
    postcard::to_stdvec(value).map(Bytes::from).map_err(|error| TransportError::Malformed(error.to_string()))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, TransportError> {
    postcard::from_bytes(bytes).map_err(|error| TransportError::Malformed(error.to_string()))
}

/// Makes a [`Peer`] for each other member.
pub(super) struct Network(pub(super) Arc<dyn Transport>);

/// One other member.
pub(super) struct Peer {
    transport: Arc<dyn Transport>,
    id: u64,
    node: BasicNode,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, id: u64, node: &BasicNode) -> Peer {
        Peer { transport: Arc::clone(&self.0), id, node: node.clone() }
    }
}

type Failure<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

impl Peer {
    async fn call<A, E>(&self, call: Call, request: &impl Serialize, option: &RPCOption) -> Result<A, Failure<E>>
    where
        A: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let failed = |error: TransportError| match &error {
            TransportError::Unreachable(..) => RPCError::Unreachable(Unreachable::new(&error)),
            TransportError::Malformed(_) => RPCError::Network(NetworkError::new(&error)),
        };
        let body = encode(request).map_err(failed)?;
        let answer = self.transport.call(self.id, &self.node.addr, call, body, option.hard_ttl()).await.map_err(failed)?;
        let result: Result<A, RaftError<u64, E>> = decode(&answer).map_err(failed)?;
        result.map_err(|error| RPCError::RemoteError(RemoteError::new_with_node(self.id, self.node.clone(), error)))
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.call(Call::AppendEntries, &request, &option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<InstallSnapshotError>> {
        self.call(Call::InstallSnapshot, &request, &option).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RPCError<u64, BasicNode, RaftError<u64>>> {
        self.call(Call::Vote, &request, &option).await
    }
}
