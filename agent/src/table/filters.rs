//! The filters of a rule or a destination, compiled. What they do is in [`crate::filters`].

use std::sync::Arc;

use switchyard_proto::v1;
use switchyard_proto::v1::filter::Filter;

use super::Destination;
use crate::filters::cors::Cors;
use crate::filters::fault::{Fault, Share};
use crate::filters::headers::Modifier;
use crate::filters::redirect::Redirect;
use crate::filters::response::Response;
use crate::filters::rewrite::Rewrite;

/// All that a rule or a destination does besides sending requests somewhere. Of each kind but mirrors there is one at most.
#[derive(Debug, Default)]
pub struct Filters {
    /// Cross-origin requests.
    pub cors: Option<Cors>,
    /// Faults on purpose.
    pub fault: Option<Fault>,
    /// A redirect as the reply.
    pub redirect: Option<Redirect>,
    /// A fixed reply.
    pub response: Option<Response>,
    /// Changes of the request's fields.
    pub request_headers: Option<Modifier>,
    /// Another host or path for instances to see.
    pub rewrite: Option<Rewrite>,
    /// Changes of the reply's fields.
    pub response_headers: Option<Modifier>,
    /// Copies of the request.
    pub mirrors: Vec<Arc<Mirror>>,
}

/// A Service that gets copies of requests.
#[derive(Debug)]
pub struct Mirror {
    /// Of how many.
    pub share: Share,
    /// Its instances.
    pub destination: Destination,
}

impl Filters {
    /// From the wire; `mirror` looks up where copies go. Nothing, where there are none.
    ///
    /// # Errors
    /// A filter that cannot be used, or that this build does not know: left out, a request would be treated otherwise than its rule says.
    pub(super) fn compile(
        wire: &[v1::Filter],
        mut mirror: impl FnMut(&v1::Destination) -> Option<Destination>,
    ) -> Result<Option<Box<Self>>, String> {
        if wire.is_empty() {
            return Ok(None);
        }
        let mut all = Self::default();
        for filter in wire {
            match filter.filter.as_ref().ok_or("a filter that this build does not know")? {
                Filter::RequestHeaders(wire) => all.request_headers = Some(Modifier::compile(wire)?),
                Filter::ResponseHeaders(wire) => all.response_headers = Some(Modifier::compile(wire)?),
                Filter::UrlRewrite(wire) => all.rewrite = Some(Rewrite::compile(wire)?),
                Filter::RequestRedirect(wire) => all.redirect = Some(Redirect::compile(wire)?),
                Filter::Fault(wire) => all.fault = Some(Fault::compile(wire)?),
                Filter::DirectResponse(wire) => all.response = Some(Response::compile(wire)?),
                Filter::Cors(wire) => all.cors = Some(Cors::compile(wire)?),
                Filter::RequestMirror(wire) => {
                    let share = Share::of_ppm(wire.ppm);
                    let destination = wire.destination.as_ref().ok_or("a mirror without a destination")?;
                    all.mirrors.extend(mirror(destination).map(|destination| Arc::new(Mirror { share, destination })));
                }
            }
        }
        Ok(Some(Box::new(all)))
    }

    /// Each filter in words, in the order in which they act.
    pub fn words(&self) -> Vec<String> {
        fn word(name: &str, filter: Option<&impl ToString>) -> Option<String> {
            filter.map(|filter| format!("{name}: {}", filter.to_string()))
        }
        let one = [
            word("CORS", self.cors.as_ref()),
            word("Fault", self.fault.as_ref()),
            word("RequestRedirect", self.redirect.as_ref()),
            word("DirectResponse", self.response.as_ref()),
            word("URLRewrite", self.rewrite.as_ref()),
            word("RequestHeaderModifier", self.request_headers.as_ref()),
            word("ResponseHeaderModifier", self.response_headers.as_ref()),
        ];
        one.into_iter().flatten().chain(self.mirrors.iter().map(|mirror| format!("RequestMirror: {mirror}"))).collect()
    }
}

impl std::fmt::Display for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = match &*self.destination.version {
            "" => String::new(),
            version => format!(" version {version}"),
        };
        write!(f, "{} to {}{version}", self.share, self.destination.service)
    }
}

/// Whether this build can use the filters and the stickiness of these rules.
///
/// # Errors
/// What it cannot use.
pub fn check(rules: &[v1::Rule]) -> Result<(), String> {
    for rule in rules {
        for filters in rule.destinations.iter().map(|to| &to.filters).chain([&rule.filters]) {
            Filters::compile(filters, |_| None).map_err(|error| format!("rule {}: {error}", rule.name))?;
        }
        if let Some(stickiness) = &rule.stickiness {
            let compiled = crate::sticky::Stickiness::compile(stickiness, &rule.destinations);
            compiled.map_err(|error| format!("rule {}: {error}", rule.name))?;
        }
    }
    Ok(())
}
