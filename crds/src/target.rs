//! What a policy is attached to (the Gateway API's direct policy attachment).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A Service of the policy's namespace, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::cel::target()))]
pub struct TargetRef {
    /// The API group; Services have the empty one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The kind.
    #[serde(default)]
    pub kind: TargetKind,
    /// The Service's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL))]
    pub name: String,
    /// Only this version of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = crate::names::LABEL_VALUE))]
    pub version: Option<String>,
    /// Only instances with all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::cel::labels")]
    pub subset: BTreeMap<String, String>,
}

/// What a policy can be attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TargetKind {
    /// A core Service.
    #[default]
    Service,
}
