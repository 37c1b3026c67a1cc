use crate::io::{Effect, Input, NodeConfig, NodeEvent};
use crate::node::Node;
use crate::settings::NodeSettings;
use gabion_cluster::{Change, Command, DrainReason, NodeInfo, Proposer};
use gabion_types::{ClusterId, Incarnation, Instant, Limits, MapIndex, NodeId};

const ME: NodeId = NodeId::new(1);
const CLUSTER: ClusterId = ClusterId::new([7; 16]);

fn info() -> NodeInfo {
    NodeInfo {
        id: ME,
        name: "node1".into(),
        peer: "127.0.0.1:1".into(),
        api: "127.0.0.1:2".into(),
        nbd: "127.0.0.1:3".into(),
        http: "127.0.0.1:4".into(),
        zone: String::new(),
    }
}

fn node(incarnation: Incarnation) -> Node {
    let config = NodeConfig {
        cluster: CLUSTER,
        node: ME,
        incarnation,
        secret: [1; 32],
        seed: 1,
        settings: NodeSettings::default(),
        info: info(),
        disks: Vec::new(),
    };
    Node::new(config, Instant::ZERO)
}

fn commit(node: &mut Node, index: u64, incarnation: Incarnation, change: Change) {
    let from = Proposer { node: ME, incarnation, number: index };
    let command = Command { from, change };
    let index = MapIndex::new(index);
    node.handle(Instant::ZERO, Input::Committed { index, command });
}

fn effects(node: &mut Node) -> Vec<Effect> {
    std::iter::from_fn(|| node.next_effect()).collect()
}

// rule: node/superseded-stops
#[test]
fn a_process_that_the_map_does_not_name_any_more_says_so() {
    let (first, second) = (Incarnation::new(10), Incarnation::new(20));
    let mut node = node(first);
    let init = Change::Init { cluster: CLUSTER, limits: Limits::DEFAULT };
    commit(&mut node, 1, first, init);
    let proposed = effects(&mut node);
    let register = proposed.iter().find_map(|effect| match effect {
        Effect::Propose { command } => Some(command.clone()),
        _ => None,
    });
    let register = register.expect("a node proposes its registration once there is a map");
    assert_eq!(register.change, Change::Register { node: info(), incarnation: first });
    node.handle(
        Instant::ZERO,
        Input::Committed { index: MapIndex::new(2), command: register.clone() },
    );
    assert!(node.stats().registered);
    let again = Change::Register { node: info(), incarnation: second };
    commit(&mut node, 3, second, again);
    assert!(!node.stats().registered);
    let superseded = Effect::Event(NodeEvent::Superseded { by: second });
    assert!(effects(&mut node).contains(&superseded));
}

// rule: node/removed-stops
#[test]
fn a_process_whose_node_was_removed_says_so_once() {
    let mine = Incarnation::new(10);
    let mut node = node(mine);
    let init = Change::Init { cluster: CLUSTER, limits: Limits::DEFAULT };
    commit(&mut node, 1, mine, init);
    commit(&mut node, 2, mine, Change::Register { node: info(), incarnation: mine });
    assert!(node.stats().registered);
    effects(&mut node);
    let why = Some(DrainReason::Operator);
    commit(&mut node, 3, mine, Change::DrainNode { node: ME, why });
    commit(&mut node, 4, mine, Change::RemoveNode { node: ME, force: false });
    let removed = Effect::Event(NodeEvent::Removed);
    let said = effects(&mut node);
    assert_eq!(said.iter().filter(|effect| **effect == removed).count(), 1);
    assert!(!node.stats().registered);
    node.handle(Instant::ZERO, Input::Tick);
    let proposes = |effect: &Effect| matches!(effect, Effect::Propose { .. });
    assert!(!effects(&mut node).iter().any(proposes), "it does not ask to be let in again");
}
