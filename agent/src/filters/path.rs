//! A path that is changed, in a rewrite or a redirect (the Gateway API's HTTPPathModifier). The query stays.

use http::Uri;
use http::uri::PathAndQuery;
use switchyard_proto::v1;

/// How a path is changed.
#[derive(Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// All of it.
    Full(Box<str>),
    /// The prefix by which it was matched; kept without a slash at the end.
    Prefix(Box<str>),
}

impl PathModifier {
    /// From the wire.
    ///
    /// # Errors
    /// What stands for it is no path.
    pub fn compile(wire: &v1::PathModifier) -> Result<Self, String> {
        let checked = |path: &str| match PathAndQuery::try_from(path) {
            Ok(parsed) if path.starts_with('/') && parsed.query().is_none() && parsed.path() == path => Ok(()),
            _ => Err(format!("{path:?} is no path")),
        };
        match &wire.path {
            Some(v1::path_modifier::Path::Full(path)) => checked(path).map(|()| Self::Full(path.as_str().into())),
            Some(v1::path_modifier::Path::Prefix(path)) => {
                let prefix = path.trim_end_matches('/');
                if !prefix.is_empty() {
                    checked(prefix)?;
                }
                Ok(Self::Prefix(prefix.into()))
            }
            None => Err("a path is changed in a way that this build does not know".to_owned()),
        }
    }

    /// The target with its path changed. `segments` are those of the prefix by which it was matched. None: it has become too long.
    pub fn apply(&self, uri: &Uri, segments: usize) -> Option<PathAndQuery> {
        let path = match self {
            Self::Full(path) => (&**path, ""),
            // Asked of the server as a whole (RFC 9110 section 9.3.7): there is no path.
            Self::Prefix(_) if uri.path() == "*" => ("*", ""),
            Self::Prefix(prefix) => (&**prefix, behind(uri.path(), segments)),
        };
        let (begin, rest) = if path == ("", "") { ("/", "") } else { path };
        let (mark, query) = uri.query().map_or(("", ""), |query| ("?", query));
        PathAndQuery::try_from([begin, rest, mark, query].concat()).ok()
    }
}

impl std::fmt::Display for PathModifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(path) => write!(f, "path {path}"),
            Self::Prefix(prefix) if prefix.is_empty() => f.write_str("without the matched prefix"),
            Self::Prefix(prefix) => write!(f, "{prefix} for the matched prefix"),
        }
    }
}

/// What of a path follows so many segments, with the slash before it. By segments, so that it does not matter how they are written.
fn behind(path: &str, segments: usize) -> &str {
    path.match_indices('/').nth(segments).map_or("", |(at, _)| &path[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(path: &str) -> v1::PathModifier {
        v1::PathModifier { path: Some(v1::path_modifier::Path::Full(path.into())) }
    }

    fn prefix(path: &str) -> v1::PathModifier {
        v1::PathModifier { path: Some(v1::path_modifier::Path::Prefix(path.into())) }
    }

    fn applied(wire: &v1::PathModifier, target: &str, matched: &str) -> String {
        let segments = matched.trim_end_matches('/').matches('/').count();
        PathModifier::compile(wire).unwrap().apply(&target.parse().unwrap(), segments).unwrap().to_string()
    }

    #[test]
    fn replace_prefix_match_gives_the_modified_paths_of_the_gateway_apis_table() {
        for (path, matched, replacement, modified) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // No prefix in the match is the prefix `/`.
            ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/a/b/c", "/a/b", "/x/y/z", "/x/y/z/c"),
        ] {
            assert_eq!(applied(&prefix(replacement), path, matched), modified, "{path} by {matched} to {replacement}");
        }
    }

    #[test]
    fn replace_full_path_replaces_the_full_path() {
        assert_eq!(applied(&full("/x"), "/foo/bar", "/foo"), "/x");
        assert_eq!(applied(&full("/x/"), "/", "/"), "/x/");
    }

    #[test]
    fn the_query_stays() {
        assert_eq!(applied(&full("/x"), "/foo?a=b&c=/d", "/"), "/x?a=b&c=/d");
        assert_eq!(applied(&prefix("/x"), "/foo/bar?a", "/foo"), "/x/bar?a");
        assert_eq!(applied(&prefix(""), "/foo?", "/foo"), "/?");
    }

    #[test]
    fn what_asks_for_no_path_stays() {
        assert_eq!(applied(&prefix("/x"), "*", "/"), "*");
    }

    #[test]
    fn what_is_no_path_is_turned_down() {
        for odd in ["", "x", "/x?y", "/x#y", "/x y"] {
            assert!(PathModifier::compile(&full(odd)).is_err(), "{odd:?}");
            assert!(odd.is_empty() || PathModifier::compile(&prefix(odd)).is_err(), "{odd:?}");
        }
    }
}
