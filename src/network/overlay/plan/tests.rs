//! From observed to wanted, as tables.

use super::*;

const ETH: u32 = 2;
const VXLAN: u32 = 9;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn own() -> Own {
    Own {
        name: "a".to_owned(),
        ip: "10.0.0.1".parse().unwrap(),
        ip_is_local: true,
        pod_cidr: net("10.42.0.0/24"),
        cluster_cidr: net("10.42.0.0/16"),
    }
}

fn peer(name: &str, number: u8) -> Peer {
    Peer { name: name.to_owned(), ip: Ipv4Addr::new(10, 0, number, 1), pod_cidr: net(&format!("10.42.{number}.0/24")) }
}

fn on_link(name: &str, number: u8) -> (Peer, Path) {
    (peer(name, number), Path::OnLink { interface: ETH })
}

fn routed(name: &str, number: u8) -> (Peer, Path) {
    (peer(name, number), Path::Routed { mtu: 1_500 })
}

fn foreign(destination: &str, metric: u32) -> SeenRoute {
    let route = Route { table: MAIN_TABLE, destination: net(destination), metric, hop: Hop::Other(String::new()) };
    SeenRoute { route, protocol: 4, is_pod: false, text: format!("{destination} dev tun0 proto static") }
}

/// The kernel as it is once everything wanted was set.
fn settled(wanted: &State<Route>) -> State<SeenRoute> {
    let seen = |route: &Route| SeenRoute { route: route.clone(), protocol: PROTOCOL, is_pod: false, text: String::new() };
    State {
        routes: wanted.routes.iter().map(seen).collect(),
        neighbours: wanted.neighbours.clone(),
        forwards: wanted.forwards.clone(),
        rules: wanted.rules.clone(),
    }
}

#[test]
fn each_peer_gets_its_own_way() {
    let peers = [on_link("b", 1), routed("c", 2), (peer("here", 3), Path::Local), (peer("lost", 4), Path::Unreachable)];
    assert_eq!(vxlan_mtu(&peers, None), Some(1_450));
    let wanted = wanted(&own(), &peers, Some(VXLAN));
    let lines: Vec<String> = wanted
        .routes
        .iter()
        .map(|route| match &route.hop {
            Hop::Via { gateway, interface, onlink, source, mtu } => {
                let table = if route.table == MAIN_TABLE { "main" } else { "own" };
                format!("{table} {} via {gateway} dev {interface} onlink {onlink} src {source:?} mtu {mtu:?}", route.destination)
            }
            other => format!("{} {other:?}", route.destination),
        })
        .collect();
    assert_eq!(
        lines,
        [
            "10.42.0.0/24 Unreachable",
            "main 10.42.1.0/24 via 10.0.1.1 dev 2 onlink false src Some(10.0.0.1) mtu None",
            "main 10.42.2.0/24 via 10.42.2.0 dev 9 onlink true src Some(10.0.0.1) mtu Some(1450)",
            "own 10.0.2.1/32 via 10.42.2.0 dev 9 onlink true src None mtu Some(1450)",
        ]
    );
    let nodes: Vec<String> = wanted.forwards.iter().map(|forward| forward.node.to_string()).collect();
    assert_eq!(nodes, ["10.0.2.1", "10.0.4.1"], "a peer that was lost for a moment is found again");
    assert_eq!(wanted.rules, [Rule { source: net("10.42.0.0/24"), table: table("a") }]);
}

#[test]
fn nothing_is_done_when_all_is_there() {
    let peers = [on_link("b", 1), routed("c", 2)];
    let wanted = wanted(&own(), &peers, Some(VXLAN));
    assert_eq!(plan(&own(), &peers, &wanted, &settled(&wanted)), (vec![], vec![]));
}

#[test]
fn agents_on_one_machine_leave_each_others_routes_alone() {
    let other = Own { name: "here".to_owned(), pod_cidr: net("10.42.3.0/24"), ..own() };
    let (wanted_here, wanted_there) = (wanted(&own(), &[], None), wanted(&other, &[], None));
    let both = State { routes: [&wanted_here.routes[..], &wanted_there.routes[..]].concat(), ..State::default() };
    let peers = [(peer("here", 3), Path::Local)];
    assert_eq!(plan(&own(), &peers, &wanted_here, &settled(&both)), (vec![], vec![]));
    // Once that node is deleted, what is left of it goes.
    let (actions, _) = plan(&own(), &[], &wanted_here, &settled(&both));
    assert_eq!(actions, [Action::RemoveRoute(wanted_there.routes[0].clone())]);
}

#[test]
fn what_is_wrong_is_replaced_and_what_is_left_over_goes() {
    let before = [on_link("b", 1), routed("c", 2), routed("gone", 5)];
    let seen = settled(&wanted(&own(), &before, Some(VXLAN)));
    // c has come onto the link; the node "gone" was deleted.
    let peers = [on_link("b", 1), on_link("c", 2)];
    let wanted = wanted(&own(), &peers, None);
    let (actions, problems) = plan(&own(), &peers, &wanted, &seen);
    assert_eq!(problems, []);
    let count = |kind: fn(&Action) -> bool| actions.iter().filter(|action| kind(action)).count();
    assert_eq!(count(|action| matches!(action, Action::ReplaceRoute(route) if route.destination == net("10.42.2.0/24"))), 1);
    assert_eq!(count(|action| matches!(action, Action::RemoveRoute(_))), 3, "{actions:?}");
    assert_eq!(count(|action| matches!(action, Action::RemoveNeighbour(_) | Action::RemoveForward(_))), 4);
    assert_eq!(count(|action| matches!(action, Action::RemoveRule(_))), 1);
    assert_eq!(actions.len(), 9, "{actions:?}");
}

#[test]
fn entries_that_others_changed_are_set_again() {
    let peers = [routed("c", 2)];
    let wanted = wanted(&own(), &peers, Some(VXLAN));
    let mut seen = settled(&wanted);
    seen.forwards[0].node = Ipv4Addr::new(10, 9, 9, 9);
    seen.neighbours[0].mac = [0; 6];
    seen.rules.clear();
    seen.routes.pop();
    let (actions, _) = plan(&own(), &peers, &wanted, &seen);
    let expected = [
        Action::SetForward(wanted.forwards[0].clone()),
        Action::SetNeighbour(wanted.neighbours[0].clone()),
        Action::AddRoute(wanted.routes[2].clone()),
        Action::AddRule(wanted.rules[0].clone()),
    ];
    assert_eq!(actions, expected);
}

#[test]
fn routes_of_others_stay_and_are_reported() {
    let peers = [on_link("b", 1), on_link("c", 2)];
    let wanted = wanted(&own(), &peers, None);
    let cases = [
        // A foreign route, whether it is in the way, and whether ours is set.
        ("10.42.1.0/24", 0, Some("b"), false),
        ("10.42.1.0/24", 100, None, true),
        ("10.42.1.64/26", 0, Some("b"), true),
        ("10.42.0.0/24", 0, Some("a"), true),
        ("10.0.0.0/8", 0, None, true),
        ("0.0.0.0/0", 0, None, true),
        ("10.42.9.0/24", 0, None, true),
    ];
    for (destination, metric, in_the_way, is_set) in cases {
        let seen = State { routes: vec![foreign(destination, metric)], ..State::default() };
        let (actions, problems) = plan(&own(), &peers, &wanted, &seen);
        assert_eq!(problems.first().map(|problem| problem.node.as_str()), in_the_way, "{destination} metric {metric}");
        let set = actions.contains(&Action::AddRoute(wanted.routes[1].clone()));
        assert_eq!(set, is_set, "{destination} metric {metric}");
        assert!(!actions.iter().any(|action| matches!(action, Action::RemoveRoute(_) | Action::ReplaceRoute(_))));
    }
    let mut other_cluster = settled(&wanted);
    other_cluster.routes[1].route.destination = net("10.77.1.0/24");
    let (actions, problems) = plan(&own(), &peers, &wanted, &other_cluster);
    assert!(problems.is_empty() && !actions.iter().any(|action| matches!(action, Action::RemoveRoute(_))), "{actions:?}");
    let pod = SeenRoute { is_pod: true, ..foreign("10.42.0.7/32", 0) };
    let (_, problems) = plan(&own(), &peers, &wanted, &State { routes: vec![pod], ..State::default() });
    assert_eq!(problems, [], "pods' own routes are no problem");
}

#[test]
fn a_peer_that_is_lost_for_a_moment_keeps_what_it_has() {
    let seen = settled(&wanted(&own(), &[routed("c", 2)], Some(VXLAN)));
    let peers = [(peer("c", 2), Path::Unreachable)];
    assert_eq!(vxlan_mtu(&peers, Some(1_450)), Some(1_450));
    assert_eq!(vxlan_mtu(&peers, None), None);
    let wanted = wanted(&own(), &peers, Some(VXLAN));
    assert_eq!(plan(&own(), &peers, &wanted, &seen).0, []);
}

#[test]
fn names_give_addresses_and_networks() {
    assert_ne!(mac("a"), mac("b"));
    assert_eq!(mac("a")[0] & 0b11, 0b10, "local and unicast");
    assert_ne!(vni("a"), vni("b"));
    assert!((1..1 << 24).contains(&vni("a")));
    assert!(table("a") > 255 && table("a") != table("b"));
}
