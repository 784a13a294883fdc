//! nf_tables in a network namespace of the test's own; what is in the kernel is read back with the real `nft`.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::expr::*;
use super::*;

/// Runs a test in a network namespace that nobody else sees and that goes with its thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Blocking work runs on other threads: sockets are opened here, and stay in this namespace.
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    });
    thread.join().unwrap();
}

/// Run by the thread of the namespace: a child is in the namespace of the thread that made it.
fn nft(arguments: &str) -> String {
    let output = Command::new("nft").args(arguments.split(' ')).output().expect("the program nft is needed by this test");
    assert!(output.status.success(), "nft {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().replace('\t', " ")
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn table() -> Table {
    Table::new(Family::Ipv4, "orch-test")
}

const SERVICE: [Type; 3] = [Type::Ipv4Addr, Type::InetProto, Type::InetService];

fn service(ip: &str, port: u16) -> Key {
    Key::new().ipv4(address(ip)).proto(6).port(port)
}

#[track_caller]
fn listed(listing: &str, wanted: &[&str]) {
    let flat = listing.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in wanted {
        assert!(flat.contains(text), "{text:?} is not in\n{listing}");
    }
}

/// A chain a test rule; one rule each, as the kernel's own program shows it.
#[test]
fn rules_are_what_nft_shows() {
    in_namespace(|| async {
        let (nft_handle, table) = (Nft::open().unwrap(), table());
        let cidr = "10.42.0.0/16".parse().unwrap();
        let cases: Vec<(Vec<Expr>, &str)> = vec![
            (match_saddr(cidr, true), "ip saddr 10.42.0.0/16"),
            (match_daddr("10.1.2.3/32".parse().unwrap(), false), "ip daddr != 10.1.2.3"),
            (match_l4proto(17), "meta l4proto udp"),
            (match_ct_state(state::NEW), "ct state new"),
            (match_ct_state(state::ESTABLISHED | state::RELATED), "ct state established,related"),
            (match_ct_status(status::DNAT), "ct status dnat"),
            (match_mark(0x4000), "meta mark & 0x00004000 != 0x00000000"),
            (set_mark(0x4000, 0x4000), "meta mark set meta mark | 0x00004000"),
            (match_local(FibAddress::Destination), "fib daddr type local"),
            (match_spoofed(), "fib saddr . iif oif 0"),
            (match_group(7, true), "iifgroup 7"),
            (match_udp(8472), "udp dport 8472"),
            ([match_syn(), clamp_mss()].concat(), "tcp flags syn / syn,rst tcp option maxseg size set rt mtu"),
            (match_interface(Meta::IifName, "orch*"), "iifname \"orch*\""),
            (match_interface(Meta::OifName, "eth0"), "oifname \"eth0\""),
            (vec![Expr::Counter, Expr::Verdict(Verdict::Accept)], "counter packets 0 bytes 0 accept"),
            (vec![Expr::Verdict(Verdict::jump("other"))], "jump other"),
            (vec![Expr::Limit { packets_per_second: 10, burst: 5, over: false }], "limit rate 10/second"),
            (vec![l4proto(Reg(0)), is(Reg(0), vec![6]), Expr::Reject(Reject::TcpReset)], "reject with tcp reset"),
            (vec![Expr::Reject(Reject::Icmp(3))], "reject"),
            (vec![ip_saddr(Reg(0)), in_set("addresses", Reg(0), true)], "ip saddr @addresses"),
            (vec![ip_saddr(Reg(0)), in_set("networks", Reg(0), false)], "ip saddr != @networks"),
            (
                vec![ip_daddr(Reg(0)), l4proto(Reg(1)), dport(Reg(2)), vmap("services", Reg(0))],
                "ip daddr . meta l4proto . th dport vmap @services",
            ),
            (
                vec![ip_saddr(Reg(0)), l4proto(Reg(1)), dport(Reg(2)), in_set("friends", Reg(0), true)],
                "ip saddr . meta l4proto . th dport @friends",
            ),
            (
                vec![
                    ip_saddr(Reg(0)),
                    ip_daddr(Reg(1)),
                    Expr::Dynset {
                        set: "seen".into(),
                        op: DynsetOp::Update,
                        key: Reg(0),
                        data: None,
                        timeout: Some(Duration::from_secs(90)),
                    },
                ],
                "update @seen { ip saddr . ip daddr timeout 1m30s }",
            ),
        ];
        let mut batch = Batch::new();
        batch.remove_table(&table);
        batch.add_table(&table);
        batch.add_chain(&table, "other");
        let sets = [
            Set::of("addresses", &[Type::Ipv4Addr]),
            Set::of("networks", &[Type::Ipv4Addr]).interval(),
            Set::verdict_map("services", &SERVICE),
            Set::of("friends", &SERVICE).interval(),
            Set::of("seen", &[Type::Ipv4Addr, Type::Ipv4Addr]).dynamic(100),
        ];
        sets.iter().for_each(|set| batch.add_set(&table, set));
        for (index, (expressions, text)) in cases.iter().enumerate() {
            let chain = format!("c{index}");
            batch.add_base_chain(&table, &chain, Base::accepting(ChainKind::Filter, Hook::Forward, 0));
            batch.add_rule(&table, &chain, &Rule::new(expressions.clone()).comment(*text));
        }
        nft_handle.commit(batch).await.unwrap();
        for (index, (_, text)) in cases.iter().enumerate() {
            listed(&nft(&format!("list chain ip orch-test c{index}")), &[&format!("{text} comment")]);
        }
        let rules = nft_handle.rules(&table, "c2").await.unwrap();
        assert_eq!(rules.iter().map(|rule| rule.comment.as_deref()).collect::<Vec<_>>(), [Some("meta l4proto udp")]);
    });
}

/// Service addresses to endpoints by maps alone: the first packet costs as much with one Service as with many.
#[test]
fn nat_is_what_nft_shows() {
    in_namespace(|| async {
        let (handle, table) = (Nft::open().unwrap(), table());
        let endpoints = Set::map("endpoints", &[&SERVICE[..], &[Type::Mark]].concat(), &[Type::Ipv4Addr, Type::InetService]);
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(&table, &endpoints);
        batch.add_base_chain(&table, "out", Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
        batch.add_base_chain(&table, "in", Base::accepting(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT));
        batch.add_rule(&table, "out", &Rule::new([Expr::Masquerade { choice: PortChoice::FullyRandom }]));
        batch.add_rule(&table, "in", &Rule::of([match_l4proto(6), dnat_to(address("10.1.0.1"), 80)]));
        let balance = [
            ip_daddr(Reg(0)),
            l4proto(Reg(1)),
            dport(Reg(2)),
            Expr::Numgen { to: Reg(3), numbers: Numbers::Random, modulus: 2, offset: 0 },
            Expr::Lookup { set: "endpoints".into(), key: Reg(0), found: Found::Value(Reg(4)) },
            Expr::Nat {
                kind: NatKind::Dnat,
                family: Family::Ipv4,
                addr: Some(Reg(4)),
                port: Some(Reg(5)),
                choice: PortChoice::Keep,
            },
        ];
        batch.add_rule(&table, "in", &Rule::new(balance));
        let element = |index, to: &str| {
            let key = service("10.43.0.1", 80).mark(index);
            Element::new(key).value(Key::new().ipv4(address(to)).port(8080))
        };
        let elements = [element(0, "10.42.0.2"), element(1, "10.42.0.3")];
        batch.add_elements(&table, &endpoints, &elements);
        handle.commit(batch).await.unwrap();
        let wanted = [
            "type nat hook prerouting priority dstnat",
            "masquerade fully-random",
            "meta l4proto tcp dnat to 10.1.0.1:80",
            "10.43.0.1 . tcp . 80 . 0x00000001 : 10.42.0.3 . 8080",
            "@endpoints",
        ];
        listed(&nft("list ruleset"), &wanted);
        let mut found = handle.elements(&table, &endpoints).await.unwrap();
        found.sort_by(|one, other| one.to.cmp(&other.to));
        assert_eq!(found, elements);
    });
}

#[test]
fn elements_come_go_and_are_read_back() {
    in_namespace(|| async {
        let (handle, table) = (Nft::open().unwrap(), table());
        let networks = Set::of("networks", &[Type::Ipv4Addr]).interval();
        let friends = Set::of("friends", &SERVICE).interval();
        let pods = Set::verdict_map("pods", &[Type::Ipv4Addr]);
        let ports = Set { comment: Some("ports of default/web".into()), ..Set::of("ports", &[Type::InetService]) };
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&table, "pod-a");
        [&networks, &friends, &pods, &ports].iter().for_each(|set| batch.add_set(&table, set));
        let nets = ["10.0.0.0/24", "10.0.1.0/24", "192.168.7.9/32", "255.255.255.0/24"];
        let nets: Vec<Element> = nets.iter().map(|net| Element::network(net.parse().unwrap())).collect();
        batch.add_elements(&table, &networks, &nets);
        let range = Element::range(service("10.9.0.0", 80), service("10.9.255.255", 90));
        batch.add_elements(&table, &friends, [&range]);
        let pod = Element::new(Key::new().ipv4(address("10.42.0.5"))).verdict(Verdict::goto("pod-a")).comment("default/a");
        batch.add_elements(&table, &pods, [&pod]);
        batch.add_elements(&table, &ports, &[Element::new(Key::new().port(443))]);
        handle.commit(batch).await.unwrap();
        let wanted = [
            "elements = { 10.0.0.0/24, 10.0.1.0/24, 192.168.7.9, 255.255.255.0/24 }",
            "elements = { 10.9.0.0/16 . tcp . 80-90 }",
            "10.42.0.5 comment \"default/a\" : goto pod-a",
            "comment \"ports of default/web\" elements = { 443 }",
        ];
        listed(&nft("list ruleset"), &wanted);
        let mut found = handle.elements(&table, &networks).await.unwrap();
        found.sort_by(|one, other| one.key.cmp(&other.key));
        assert_eq!(found, nets);
        assert_eq!(handle.elements(&table, &friends).await.unwrap(), [range.clone()]);
        assert_eq!(handle.elements(&table, &pods).await.unwrap(), [pod.clone()]);

        // What an element gives is changed in one transaction; then all that names the chain goes, and the chain.
        let mut batch = Batch::new();
        batch.delete_elements(&table, &pods, [&pod]);
        batch.add_elements(&table, &pods, &[Element { to: None, ..pod.clone() }.verdict(Verdict::Drop)]);
        batch.delete_elements(&table, &friends, [&range]);
        batch.delete_elements(&table, &networks, [&nets[1]]);
        batch.delete_chain(&table, "pod-a");
        batch.flush_set(&table, "ports");
        handle.commit(batch).await.unwrap();
        listed(&nft("list map ip orch-test pods"), &["10.42.0.5 comment \"default/a\" : drop"]);
        listed(&nft("list set ip orch-test networks"), &["{ 10.0.0.0/24, 192.168.7.9, 255.255.255.0/24 }"]);
        assert!(handle.elements(&table, &friends).await.unwrap().is_empty());
        assert!(handle.chains(&table).await.unwrap().is_empty());
        assert_eq!(handle.sets(&table).await.unwrap().len(), 4);
    });
}

#[test]
fn an_error_names_the_operation_and_nothing_is_done() {
    in_namespace(|| async {
        let (handle, table) = (Nft::open().unwrap(), table());
        let pods = Set::verdict_map("pods", &[Type::Ipv4Addr]);
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(&table, &pods);
        let element = Element::new(Key::new().ipv4(address("10.42.0.5"))).verdict(Verdict::goto("missing"));
        batch.add_elements(&table, &pods, &[element]);
        let error = handle.commit(batch).await.unwrap_err();
        assert_eq!(error.to_string(), "add elements to set pods in table ip orch-test: No such file or directory");
        assert!(error.is_not_found());
        assert!(!handle.has_table(&table).await.unwrap(), "all or nothing");
        let mut batch = Batch::new();
        batch.remove_table(&table);
        handle.commit(batch).await.unwrap();
        assert!(handle.tables(Family::Ipv4).await.unwrap().is_empty());
    });
}

#[test]
fn a_large_transaction_is_one_transaction() {
    in_namespace(|| async {
        let (handle, table) = (Nft::open().unwrap(), table());
        let services = Set::verdict_map("services", &SERVICE);
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&table, "balance");
        batch.add_set(&table, &services);
        let elements: Vec<Element> = (0..60_000_u32)
            .map(|index| Element::new(Key::new().ipv4((0x0a2b_0000 + index).into()).proto(6).port(80)))
            .map(|element| element.verdict(Verdict::goto("balance")))
            .collect();
        batch.add_elements(&table, &services, &elements);
        assert!(batch.len() > 50, "an attribute holds 64 KiB");
        handle.commit(batch).await.unwrap();
        assert_eq!(handle.elements(&table, &services).await.unwrap().len(), elements.len());
        // Every element of this one is refused; one error is told, and how many more there were.
        let mut batch = Batch::new();
        batch.create_elements(&table, &services, &elements);
        let error = handle.commit(batch).await.unwrap_err().to_string();
        assert!(error.starts_with("create elements in set services in table ip orch-test: File exists, and "), "{error}");
    });
}

#[test]
fn a_change_by_somebody_else_is_noticed() {
    in_namespace(|| async {
        let (handle, table) = (Nft::open().unwrap(), table());
        let mut monitor = handle.monitor(&table).unwrap();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&table, "mine");
        handle.commit(batch).await.unwrap();
        nft("add table ip other");
        let quiet = tokio::time::timeout(Duration::from_millis(100), monitor.changed()).await;
        assert!(quiet.is_err(), "one's own changes, and those of other tables, are not told");
        for action in ["flush chain ip orch-test mine", "delete chain ip orch-test mine", "flush ruleset"] {
            nft("add chain ip orch-test mine { drop ; }");
            monitor.changed().await.unwrap();
            nft(action);
            let told = tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await;
            assert_eq!(told.expect(action).unwrap(), Changed::Foreign);
        }
    });
}

#[test]
fn rules_have_places() {
    in_namespace(|| async {
        let (handle, table) = (Nft::open().unwrap(), table());
        let rule = |comment: &str| Rule::new([Expr::Counter]).comment(comment);
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(&table, "chain");
        batch.add_rule(&table, "chain", &rule("b"));
        batch.add_rule(&table, "chain", &rule("c"));
        batch.insert_rule(&table, "chain", &rule("a"));
        handle.commit(batch).await.unwrap();
        let found = handle.rules(&table, "chain").await.unwrap();
        let mut batch = Batch::new();
        batch.delete_rule(&table, "chain", found[0].handle);
        batch.replace_rule(&table, "chain", found[1].handle, &rule("B"));
        handle.commit(batch).await.unwrap();
        let found = handle.rules(&table, "chain").await.unwrap();
        assert_eq!(found.iter().map(|rule| rule.comment.as_deref()).collect::<Vec<_>>(), [Some("B"), Some("c")]);
    });
}
