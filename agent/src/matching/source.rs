//! Who calls, as rules ask for it. A caller is known by its address: it is a pod of the agent's node. Of one that is not known nothing
//! holds, so no rule for some callers takes a stranger in.

use std::fmt;

use switchyard_proto::v1;

use crate::table::Workload;

/// Compares the caller; what is `None` may be any.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceMatcher {
    pub(super) namespace: Option<Box<str>>,
    pub(super) service_account: Option<Box<str>>,
    pub(super) labels: Box<[(Box<str>, Box<str>)]>,
}

/// Why a caller is not one that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger<'e> {
    /// Nobody knows who it is.
    Unknown(&'e SourceMatcher),
    /// It is of another namespace.
    Namespace(&'e str),
    /// It runs under another account.
    ServiceAccount(&'e str),
    /// It does not have that label with that value.
    Label(&'e str, &'e str),
}

impl SourceMatcher {
    pub(super) fn compile(wire: &v1::SourceMatch) -> Self {
        let given = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Into::into);
        Self {
            namespace: given(&wire.namespace),
            service_account: given(&wire.service_account),
            labels: wire.labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
        }
    }

    pub(super) fn holds(&self, caller: Option<&Workload>) -> Result<(), Stranger<'_>> {
        let Some(caller) = caller else { return Err(Stranger::Unknown(self)) };
        if let Some(namespace) = self.namespace.as_deref().filter(|namespace| *namespace != caller.namespace) {
            return Err(Stranger::Namespace(namespace));
        }
        if let Some(account) = self.service_account.as_deref().filter(|account| *account != caller.service_account) {
            return Err(Stranger::ServiceAccount(account));
        }
        let differs = |(name, value): &&(Box<str>, Box<str>)| caller.labels.get(&**name).is_none_or(|v| **v != **value);
        match self.labels.iter().find(differs) {
            Some((name, value)) => Err(Stranger::Label(name, value)),
            None => Ok(()),
        }
    }
}

/// `namespace web, service account front, label app = x`.
impl fmt::Display for SourceMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let namespace = self.namespace.iter().map(|namespace| format!("namespace {namespace}"));
        let account = self.service_account.iter().map(|account| format!("service account {account}"));
        let labels = self.labels.iter().map(|(name, value)| format!("label {name} = {value}"));
        f.write_str(&namespace.chain(account).chain(labels).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Stranger<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(wanted) => write!(f, "who calls is not known, and it is for callers of {wanted}"),
            Self::Namespace(namespace) => write!(f, "the caller is not of namespace {namespace}"),
            Self::ServiceAccount(account) => write!(f, "the caller's service account is not {account}"),
            Self::Label(name, value) => write!(f, "the caller's label {name} is not {value}"),
        }
    }
}
