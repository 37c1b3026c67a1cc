//! Whether the others know this node, for one that starts without a log.

use crate::control::peers::Peers;
use gabion_api::v1::NodesRequest;
use gabion_api::v1::cluster_client::ClusterClient;
use gabion_types::NodeId;
use std::time::Duration;

/// A node that has not answered by then knows nothing.
const WAIT: Duration = Duration::from_secs(1);

/// True when one of the others that answer has this node in its map. Who had a log registered
/// itself; to vote again without that log could undo what was decided.
pub async fn by_others(peers: &Peers) -> bool {
    let others = peers.others();
    let asked = others.into_iter().filter_map(|node| peers.channel(node)).map(|channel| async {
        let call = async { ClusterClient::new(channel).nodes(NodesRequest {}).await };
        let answer = tokio::time::timeout(WAIT, call).await.ok()?.ok()?;
        let mut nodes = answer.into_inner().nodes.into_iter();
        nodes.find(|node| NodeId::new(node.id) == peers.me)
    });
    for answer in asked {
        if answer.await.is_some() {
            return true;
        }
    }
    false
}
