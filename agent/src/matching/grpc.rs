//! Which gRPC call a request is: its content type says that it is one, as does its method, which is POST, and its path,
//! `/service/method`, which.

use std::fmt;

use switchyard_proto::v1;

/// Compares a gRPC call; what is `None` may be any.
#[derive(Debug, PartialEq, Eq)]
pub struct GrpcMatcher {
    pub(super) service: Option<Box<str>>,
    pub(super) method: Option<Box<str>>,
}

impl GrpcMatcher {
    pub(super) fn compile(wire: &v1::GrpcMatch) -> Self {
        let given = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Into::into);
        Self { service: given(&wire.service), method: given(&wire.method) }
    }

    /// Whether a path is that of the call.
    pub(super) fn matches(&self, path: &str) -> bool {
        let Some((service, method)) = call(path) else { return false };
        let is = |wanted: &Option<Box<str>>, given| wanted.as_deref().is_none_or(|wanted| wanted == given);
        is(&self.service, service) && is(&self.method, method)
    }
}

/// The service and the method that a path names.
pub(super) fn call(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
    (!service.is_empty() && !method.is_empty()).then_some((service, method))
}

/// `shop.Cart/AddItem`; what may be any is `*`.
impl fmt::Display for GrpcMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &'_ Option<Box<str>>| part.as_deref().unwrap_or("*").to_owned();
        write!(f, "{}/{}", part(&self.service), part(&self.method))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grpc(service: &str, method: &str) -> GrpcMatcher {
        GrpcMatcher::compile(&v1::GrpcMatch { service: service.into(), method: method.into() })
    }

    #[test]
    fn either_part_of_a_call_may_be_any() {
        for (service, method, path, holds) in [
            ("shop.Cart", "AddItem", "/shop.Cart/AddItem", true),
            ("shop.Cart", "AddItem", "/shop.Cart/Add", false),
            ("shop.Cart", "", "/shop.Cart/Anything", true),
            ("shop.Cart", "", "/shop.Cart", false),
            ("shop.Cart", "", "/shop.Cart/", false),
            ("shop.Cart", "", "/shop.Cart/a/b", false),
            ("shop.Cart", "", "/shop.Carts/a", false),
            ("", "AddItem", "/any.Service/AddItem", true),
            ("", "AddItem", "/any.Service/additem", false),
            ("", "", "/a/b", true),
            ("", "", "/a", false),
        ] {
            assert_eq!(grpc(service, method).matches(path), holds, "{service}/{method} and {path}");
        }
    }
}
