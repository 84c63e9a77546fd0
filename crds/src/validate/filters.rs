//! What no schema can say of filters, and of fixed replies.

use crate::route_rule::{
    CannedResponse, Cors, Fault, Filter, FilterType, HeaderModifier, HeaderValue, PathMatchType, PathModifier,
    PathModifierType, RequestRedirect, RouteRuleSpec,
};
use crate::{names, values::Percent};

use super::Report;

/// Whether a filter answers every request that comes to it.
pub(super) fn answers(filter: &Filter) -> bool {
    matches!(filter.kind, FilterType::RequestRedirect | FilterType::DirectResponse)
}

/// Whether a filter answers every request with an error.
pub(super) fn aborts_all(filter: &Filter) -> bool {
    let abort = filter.fault.as_ref().and_then(|fault| fault.abort);
    abort.is_some_and(|abort| abort.percent == Percent::whole(100))
}

impl Report {
    /// The filters of a rule.
    pub(super) fn rule_filters(&mut self, spec: &RouteRuleSpec) {
        let filters = &spec.filters;
        self.filters("spec.filters", filters);
        let excludes = |filter: &&Filter| answers(filter) || filter.kind == FilterType::UrlRewrite;
        let mut kinds = filters.iter().filter(excludes).map(|filter| filter.kind);
        let one = kinds.next().is_none_or(|first| kinds.all(|kind| kind == first));
        self.require(one, "spec.filters", super::REDIRECT_REWRITE);
        let is_prefix = |kind: Option<PathMatchType>| kind.is_none_or(|kind| kind == PathMatchType::PathPrefix);
        if filters.iter().any(replaces_prefix)
            && !spec.matches.iter().all(|entry| is_prefix(entry.path.as_ref().map(|path| path.kind)))
        {
            self.error("spec.filters", super::PREFIX_ONLY);
        }
        let takes_options = |method: &Option<String>| method.as_deref().is_none_or(|method| method == "OPTIONS");
        let preflights = spec.matches.is_empty() || spec.matches.iter().any(|entry| takes_options(&entry.method));
        for (i, _) in filters.iter().enumerate().filter(|(_, filter)| filter.cors.is_some() && !preflights) {
            let message = "browsers ask with OPTIONS first, and no match of the rule takes that: give one that does";
            self.suspicious(format!("spec.filters[{i}].cors"), message);
        }
    }

    /// The filters of a destination.
    pub(super) fn destination_filters(&mut self, field: &str, filters: &[Filter]) {
        self.filters(field, filters);
        let taken = |filter: &Filter| {
            use FilterType::{RequestHeaderModifier, RequestMirror, ResponseHeaderModifier};
            matches!(filter.kind, RequestHeaderModifier | ResponseHeaderModifier | RequestMirror)
        };
        self.require(filters.iter().all(taken), field, super::DESTINATION_FILTER);
    }

    fn filters(&mut self, field: &str, filters: &[Filter]) {
        for (i, filter) in filters.iter().enumerate() {
            self.filter(&format!("{field}[{i}]"), filter);
        }
        let again = |(i, filter): (usize, &Filter)| {
            filter.kind != FilterType::RequestMirror && filters[..i].iter().any(|other| other.kind == filter.kind)
        };
        self.require(!filters.iter().enumerate().any(again), field, super::FILTER_TWICE);
    }

    fn filter(&mut self, field: &str, filter: &Filter) {
        let given = [
            (FilterType::RequestHeaderModifier, filter.request_header_modifier.is_some()),
            (FilterType::ResponseHeaderModifier, filter.response_header_modifier.is_some()),
            (FilterType::UrlRewrite, filter.url_rewrite.is_some()),
            (FilterType::RequestRedirect, filter.request_redirect.is_some()),
            (FilterType::RequestMirror, filter.request_mirror.is_some()),
            (FilterType::Fault, filter.fault.is_some()),
            (FilterType::DirectResponse, filter.direct_response.is_some()),
            (FilterType::Cors, filter.cors.is_some()),
        ];
        self.require(given.iter().all(|(kind, given)| *given == (*kind == filter.kind)), field, super::FILTER_FIELD);
        for (name, modifier) in [
            ("requestHeaderModifier", &filter.request_header_modifier),
            ("responseHeaderModifier", &filter.response_header_modifier),
        ] {
            if let Some(modifier) = modifier {
                self.header_modifier(&format!("{field}.{name}"), modifier);
            }
        }
        if let Some(path) = filter.url_rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref()) {
            self.path_modifier(&format!("{field}.urlRewrite.path"), path);
        }
        if let Some(redirect) = &filter.request_redirect {
            self.redirect(&format!("{field}.requestRedirect"), redirect);
        }
        if let Some(fault) = &filter.fault {
            self.fault(&format!("{field}.fault"), fault);
        }
        if let Some(response) = &filter.direct_response {
            self.canned_response(&format!("{field}.directResponse"), response);
        }
        if let Some(cors) = &filter.cors {
            self.cors(&format!("{field}.cors"), cors);
        }
    }

    fn header_modifier(&mut self, field: &str, modifier: &HeaderModifier) {
        let HeaderModifier { set, add, remove } = modifier;
        self.field_names(&format!("{field}.set"), set);
        self.field_names(&format!("{field}.add"), add);
        self.require(
            remove.iter().all(|name| names::may_be_touched(name)),
            format!("{field}.remove"),
            super::UNTOUCHED,
        );
        let named = |list, fields: &[HeaderValue]| {
            let names = fields
                .iter()
                .enumerate()
                .map(move |(i, header)| (format!("{list}[{i}]"), header.name.to_ascii_lowercase()));
            names.collect::<Vec<_>>()
        };
        let removed = remove.iter().enumerate().map(|(i, name)| (format!("remove[{i}]"), name.to_ascii_lowercase()));
        let all: Vec<_> = named("set", set).into_iter().chain(named("add", add)).chain(removed).collect();
        for (i, (place, name)) in all.iter().enumerate() {
            if all[..i].iter().any(|(_, other)| other == name) {
                self.error(format!("{field}.{place}"), format!("{name} {}", super::FIELD_TWICE));
            }
        }
    }

    fn field_names(&mut self, field: &str, headers: &[HeaderValue]) {
        for (i, header) in headers.iter().enumerate() {
            self.require(names::may_be_touched(&header.name), format!("{field}[{i}].name"), super::UNTOUCHED);
        }
    }

    fn redirect(&mut self, field: &str, redirect: &RequestRedirect) {
        let known = matches!(redirect.status_code, 301 | 302 | 303 | 307 | 308);
        self.require(known, format!("{field}.statusCode"), super::REDIRECT_STATUS);
        if let Some(path) = &redirect.path {
            self.path_modifier(&format!("{field}.path"), path);
        }
        let RequestRedirect { scheme, hostname, port, path, .. } = redirect;
        if scheme.is_none() && hostname.is_none() && port.is_none() && path.is_none() {
            self.suspicious(field, "it leads to where the request already is: give a scheme, hostname, port or path");
        }
    }

    fn fault(&mut self, field: &str, fault: &Fault) {
        self.require(fault.delay.is_some() || fault.abort.is_some(), field, super::FAULT_NONE);
    }

    /// A fixed reply, of a rule or in place of a destination.
    pub(super) fn canned_response(&mut self, field: &str, response: &CannedResponse) {
        self.field_names(&format!("{field}.headers"), &response.headers);
        let may_have_one = !matches!(response.status, 204 | 205 | 304);
        self.require(may_have_one || response.body.is_empty(), format!("{field}.body"), super::NO_BODY);
    }

    fn cors(&mut self, field: &str, cors: &Cors) {
        for (list, entries) in [
            ("allowOrigins", &cors.allow_origins),
            ("allowMethods", &cors.allow_methods),
            ("allowHeaders", &cors.allow_headers),
            ("exposeHeaders", &cors.expose_headers),
        ] {
            let alone = entries.len() < 2 || !entries.iter().any(|entry| entry == "*");
            self.require(alone, format!("{field}.{list}"), super::ALONE);
        }
        if cors.allow_origins.is_empty() {
            self.suspicious(format!("{field}.allowOrigins"), "is empty, so no origin may ask");
        }
        if cors.allow_credentials && cors.expose_headers == ["*"] {
            let message = "with allowCredentials browsers take `*` for a field of that name: name the fields";
            self.suspicious(format!("{field}.exposeHeaders"), message);
        }
    }

    fn path_modifier(&mut self, field: &str, path: &PathModifier) {
        let given = (path.replace_full_path.is_some(), path.replace_prefix_match.is_some());
        let wanted =
            (path.kind == PathModifierType::ReplaceFullPath, path.kind == PathModifierType::ReplacePrefixMatch);
        self.require(given == wanted, field, super::FILTER_FIELD);
    }
}

fn replaces_prefix(filter: &Filter) -> bool {
    let rewrite = filter.url_rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    let redirect = filter.request_redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
    rewrite.into_iter().chain(redirect).any(|path| path.kind == PathModifierType::ReplacePrefixMatch)
}
