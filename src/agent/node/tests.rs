//! The Node object as tables.

use k8s_openapi::api::core::v1::{NodeCondition, NodeStatus};
use serde_json::json;

use super::object::says_the_same;
use super::{is_ready, network_not_ready, turned};

fn status(ready: &str, heartbeat: &str, reason: &str) -> NodeStatus {
    let condition: NodeCondition =
        serde_json::from_value(json!({"type": "Ready", "status": ready, "reason": reason, "lastHeartbeatTime": heartbeat}))
            .unwrap();
    NodeStatus { conditions: Some(vec![condition]), ..NodeStatus::default() }
}

#[test]
fn heartbeats_alone_are_no_change() {
    let one = status("True", "2026-01-01T00:00:00Z", "KubeletReady");
    let table = [
        (status("True", "2026-01-01T00:00:10Z", "KubeletReady"), true),
        (status("False", "2026-01-01T00:00:00Z", "KubeletReady"), false),
        (status("True", "2026-01-01T00:00:00Z", "KubeletNotReady"), false),
    ];
    for (other, same) in table {
        assert_eq!(says_the_same(&one, &other), same, "{other:?}");
    }
    let mut pressed = one.clone();
    pressed.conditions.as_mut().unwrap()[0].type_ = "DiskPressure".to_owned();
    assert_eq!((turned(&one, &pressed), turned(&pressed, &one)), (vec!["NodeHasDiskPressure"], vec!["NodeHasNoDiskPressure"]));
    assert!(is_ready(&one) && !is_ready(&NodeStatus::default()));
    assert!(network_not_ready("x").ends_with("reason:NetworkPluginNotReady message:x"));
}
