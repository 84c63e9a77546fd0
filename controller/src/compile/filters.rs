//! What a rule does besides sending requests somewhere, and what keeps a user in one of its destinations.

use switchyard_crds::RouteRule;
use switchyard_crds::route_rule::{
    CannedResponse, Cors, Fault, Filter, HeaderModifier, HeaderValue, PathModifier, RequestMirror, RequestRedirect,
    Stickiness, UrlRewrite,
};
use switchyard_proto::v1;
use switchyard_proto::v1::filter::Filter as Wire;

use crate::compile::destinations;
use crate::compile::routes::port_number;
use crate::world::mirrored_service;

/// How long a browser may keep the answer to a preflight, in seconds, where a rule does not say.
const DEFAULT_MAX_AGE: u64 = 5;

/// Filters of a rule, or of one of its destinations.
pub fn compile(rule: &RouteRule, filters: &[Filter]) -> Vec<v1::Filter> {
    filters.iter().filter_map(|filter| wire(rule, filter)).map(|filter| v1::Filter { filter: Some(filter) }).collect()
}

/// The one field that a filter has; validation lets none have another number.
fn wire(rule: &RouteRule, filter: &Filter) -> Option<Wire> {
    let Filter { kind: _, request_header_modifier, response_header_modifier, url_rewrite, .. } = filter;
    let Filter { request_redirect, request_mirror, fault, direct_response, cors, .. } = filter;
    (request_header_modifier.as_ref().map(|m| Wire::RequestHeaders(header_modifier(m))))
        .or(response_header_modifier.as_ref().map(|m| Wire::ResponseHeaders(header_modifier(m))))
        .or(url_rewrite.as_ref().map(|r| Wire::UrlRewrite(rewrite(r))))
        .or(request_redirect.as_ref().map(|r| Wire::RequestRedirect(redirect(r))))
        .or(request_mirror.as_ref().map(|m| Wire::RequestMirror(mirror(rule, m))))
        .or(fault.as_ref().map(|f| Wire::Fault(self::fault(f))))
        .or(direct_response.as_ref().map(|r| Wire::DirectResponse(response(r))))
        .or(cors.as_ref().map(|c| Wire::Cors(self::cors(c))))
}

fn header_modifier(modifier: &HeaderModifier) -> v1::HeaderModifier {
    let HeaderModifier { set, add, remove } = modifier;
    let remove = remove.iter().map(|name| name.to_ascii_lowercase()).collect();
    v1::HeaderModifier { set: fields(set), add: fields(add), remove }
}

fn fields(headers: &[HeaderValue]) -> Vec<v1::HeaderField> {
    let field = |h: &HeaderValue| v1::HeaderField { name: h.name.to_ascii_lowercase(), value: h.value.clone() };
    headers.iter().map(field).collect()
}

fn rewrite(rewrite: &UrlRewrite) -> v1::UrlRewrite {
    let UrlRewrite { hostname, path } = rewrite;
    v1::UrlRewrite { hostname: hostname.clone().unwrap_or_default(), path: path.as_ref().and_then(path_modifier) }
}

fn path_modifier(path: &PathModifier) -> Option<v1::PathModifier> {
    let full = path.replace_full_path.clone().map(v1::path_modifier::Path::Full);
    let path = full.or_else(|| path.replace_prefix_match.clone().map(v1::path_modifier::Path::Prefix));
    path.map(|path| v1::PathModifier { path: Some(path) })
}

fn redirect(redirect: &RequestRedirect) -> v1::RequestRedirect {
    let RequestRedirect { scheme, hostname, port, path, status_code } = redirect;
    v1::RequestRedirect {
        scheme: scheme.clone().unwrap_or_default(),
        hostname: hostname.clone().unwrap_or_default(),
        port: port_number(*port),
        path: path.as_ref().and_then(path_modifier),
        status: number(*status_code),
    }
}

fn mirror(rule: &RouteRule, mirror: &RequestMirror) -> v1::RequestMirror {
    let service = mirrored_service(rule, mirror);
    v1::RequestMirror {
        destination: Some(v1::Destination {
            namespace: service.namespace,
            service: service.name,
            port: port_number(mirror.port),
            selector: Some(destinations::selector(mirror.version.as_deref(), &Default::default())),
            ..v1::Destination::default()
        }),
        ppm: mirror.percent.ppm(),
    }
}

fn fault(fault: &Fault) -> v1::Fault {
    v1::Fault {
        delay: fault.delay.map(|d| v1::FaultDelay { duration_ms: d.duration.as_millis(), ppm: d.percent.ppm() }),
        abort: fault.abort.map(|a| v1::FaultAbort { status: number(a.status), ppm: a.percent.ppm() }),
    }
}

fn response(response: &CannedResponse) -> v1::DirectResponse {
    let CannedResponse { status, headers, body } = response;
    v1::DirectResponse { status: number(*status), headers: fields(headers), body: body.clone() }
}

fn cors(cors: &Cors) -> v1::Cors {
    v1::Cors {
        allow_origins: cors.allow_origins.clone(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        allow_credentials: cors.allow_credentials,
        max_age_seconds: cors.max_age.map_or(DEFAULT_MAX_AGE, |age| age.0.as_millis().div_ceil(1000)),
    }
}

fn number(status: i32) -> u32 {
    u32::try_from(status).unwrap_or_default()
}

/// What keeps a user in one destination.
pub fn stickiness(stickiness: &Stickiness) -> v1::Stickiness {
    let on = &stickiness.on;
    let header = on.header.as_ref().map(|name| v1::stickiness::On::Header(name.to_ascii_lowercase()));
    let cookie = on.cookie.as_ref().map(|cookie| {
        let ttl_ms = cookie.ttl.map(|ttl| ttl.as_millis());
        v1::stickiness::On::Cookie(v1::StickyCookie { name: cookie.name.clone(), ttl_ms })
    });
    v1::Stickiness { on: header.or(cookie).or(on.source_ip.map(|_| v1::stickiness::On::SourceIp(true))) }
}
