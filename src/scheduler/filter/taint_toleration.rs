//! TaintToleration: a pod runs only where it tolerates the taints NoSchedule and NoExecute.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Cycle, Filter, HelpedBy, NodeInfo, Reason};

pub(super) const FILTER: Filter = Filter {
    name: "TaintToleration",
    passes: |cycle, node| untolerated(cycle, node).is_none(),
    explain,
    helped_by: HelpedBy::Nodes,
    yields_to_removal: |_, _| false,
};

fn untolerated<'a>(cycle: &Cycle<'_>, node: &'a NodeInfo) -> Option<&'a Taint> {
    let hard = node.taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    hard.into_iter().find(|taint| !tolerates(cycle.pod.tolerations(), taint))
}

fn explain(cycle: &Cycle<'_>, node: &NodeInfo) -> Vec<Reason> {
    let Some(taint) = untolerated(cycle, node) else { return Vec::new() };
    let value = taint.value.as_deref().unwrap_or("");
    let text = if value.is_empty() { taint.key.clone() } else { format!("{}={value}", taint.key) };
    Reason::new(
        format!("node(s) had untolerated taint {{{}: {value}}}", taint.key),
        format!("has taint {text}:{} that the pod does not tolerate", taint.effect),
    )
}

/// Whether one of the tolerations covers a taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| covers(toleration, taint))
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}
