//! What is to be said of an object: the one origin of conditions, webhook warnings, `check` output and log lines.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// One thing that is wrong, or likely so: which object, which field, what, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Whether the object is refused for it.
    pub severity: Severity,
    /// What sort of thing it is.
    pub reason: Reason,
    /// The object, where one could be told.
    #[serde(flatten)]
    pub object: ObjectName,
    /// Where it was written, if it came from a file.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// The path of the field: `spec.destinations[1].weight`. Empty: the object as a whole.
    pub field: String,
    /// What is wrong and what would be right; a lower-case fragment.
    pub message: String,
    /// Other objects that have part in it, as `namespace/name`.
    pub others: Vec<String>,
    /// A request that shows it.
    pub example: Option<ExampleRequest>,
}

/// Whether an object is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is refused; what held before stays in force.
    Error,
    /// The object is taken.
    Warning,
}

/// The closed list of reasons; conditions and `check` use these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// The text is not what its format asks for.
    Syntax,
    /// The file could not be read.
    Unreadable,
    /// A value that cannot be.
    Invalid,
    /// A field that does not exist.
    UnknownField,
    /// A kind that is not for Switchyard.
    UnknownKind,
    /// Two objects with one name.
    Duplicate,
    /// Something is named that does not exist.
    UnresolvedRef,
    /// Two objects want the same, and only age tells them apart.
    Conflicted,
    /// A rule that no request can reach.
    Shadowed,
    /// A field that this build accepts but does not act on yet.
    NotEnforced,
    /// It works, and is likely a mistake.
    Suspicious,
    /// The Service is not taken into the mesh.
    NotOptedIn,
}

/// Which object is spoken of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectName {
    /// Its kind, or empty.
    pub kind: String,
    /// Its namespace, or empty.
    pub namespace: String,
    /// Its name, or empty.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.namespace.as_str(), self.name.as_str()) {
            (_, "") => f.write_str(&self.kind),
            ("", name) => write!(f, "{} {name}", self.kind),
            (namespace, name) => write!(f, "{} {namespace}/{name}", self.kind),
        }
    }
}

/// A place in a file. Lines and columns count from 1; a column counts characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line; 0 when the file as a whole is meant.
    pub line: usize,
    /// The column.
    pub column: usize,
    /// How many characters of the line are meant; at least 1.
    pub length: usize,
}

/// A request that shows what a finding means.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ExampleRequest {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its header fields.
    #[serde(serialize_with = "as_map")]
    pub headers: Vec<(String, String)>,
    /// Who sends it, where that matters: `namespace web, label app=frontend`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
}

/// `GET /cart with x-version: v2 from namespace web`
impl fmt::Display for ExampleRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        for (i, (name, value)) in self.headers.iter().enumerate() {
            write!(f, "{}{name}: {value}", if i == 0 { " with " } else { ", " })?;
        }
        self.caller.iter().try_for_each(|caller| write!(f, " from {caller}"))
    }
}

fn as_map<S: serde::Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl Finding {
    /// A finding that refuses the object.
    pub fn error(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, reason, field.into(), message.into())
    }

    /// A finding that lets the object pass.
    pub fn warning(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, reason, field.into(), message.into())
    }

    fn new(severity: Severity, reason: Reason, field: String, message: String) -> Self {
        Self {
            severity,
            reason,
            object: ObjectName::default(),
            place: None,
            field,
            message,
            others: Vec::new(),
            example: None,
        }
    }

    /// Whether the object is refused for it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The same finding, about this object.
    #[must_use]
    pub fn about(mut self, object: &ObjectName) -> Self {
        self.object = object.clone();
        self
    }
}
