//! The normal form of paths: what rules and requests are compared in, and what instances get. It is the only spelling of a path that
//! both sides know, so that a rule cannot be passed by with another one.
//!
//! - What is percent-encoded without need (letters, digits, `-._~`) is decoded, and what stays encoded has upper-case digits
//!   (RFC 3986, section 6.2.2); what no path may contain as it is (section 3.3), such as `é` or `{`, is encoded.
//! - `.` and `..` are resolved (section 5.2.4), also where they were encoded. What leads above the root is refused.
//! - Slashes in a row are one slash, and a backslash is a slash. An encoded slash stays encoded and parts nothing.
//! - What is no encoding (`%zz`), and an encoded NUL, is refused.
//!
//! Keeps true: the normal form of a normal form is itself, and takes no memory.

use std::borrow::Cow;
use std::fmt;

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does not begin with a slash.
    NoSlash,
    /// A percent sign without two hexadecimal digits.
    NoEncoding,
    /// NUL, which many a program takes for the end.
    Nul,
    /// More `..` than there are segments before.
    AboveRoot,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSlash => "the path does not begin with a slash",
            Self::NoEncoding => "the path has a percent sign that is followed by no two hexadecimal digits",
            Self::Nul => "the path has a NUL in it",
            Self::AboveRoot => "the path leads above the root",
        })
    }
}

/// The normal form of a path.
///
/// # Errors
/// It has none.
pub fn normal(path: &str) -> Result<Cow<'_, str>, Fault> {
    if is_normal(path.as_bytes()) { Ok(Cow::Borrowed(path)) } else { rewrite(path.as_bytes()).map(Cow::Owned) }
}

/// What a byte of a path is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It stands for itself, encoded or not.
    Unreserved,
    /// It stands for itself, and encoded for something else.
    Reserved,
    /// It has to be encoded.
    Foreign,
    Slash,
    Backslash,
    Dot,
    Percent,
}

const KINDS: [Kind; 256] = {
    let mut kinds = [Kind::Foreign; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Kind::Unreserved,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => Kind::Reserved,
            b'/' => Kind::Slash,
            b'\\' => Kind::Backslash,
            b'.' => Kind::Dot,
            b'%' => Kind::Percent,
            _ => Kind::Foreign,
        };
        byte += 1;
    }
    kinds
};

fn kind(byte: u8) -> Kind {
    KINDS[usize::from(byte)]
}

/// The byte that two hexadecimal digits stand for.
fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*digits.first()?)? << 4 | digit(*digits.get(1)?)?)
}

fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    let mut at = 0;
    while let Some(byte) = path.get(at) {
        let kind = kind(*byte);
        match kind {
            Kind::Unreserved | Kind::Reserved => {}
            Kind::Slash if !after_slash => {}
            Kind::Dot if !after_slash || !is_dot_segment(&path[at..]) => {}
            Kind::Percent if is_normal_encoding(path.get(at + 1..at + 3)) => at += 2,
            _ => return false,
        }
        after_slash = kind == Kind::Slash;
        at += 1;
    }
    path.first() == Some(&b'/')
}

/// Whether what stands behind a slash is `.` or `..`.
fn is_dot_segment(segment: &[u8]) -> bool {
    matches!(segment, [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..])
}

fn is_normal_encoding(digits: Option<&[u8]>) -> bool {
    let Some(digits) = digits else { return false };
    let is_upper = !digits.iter().any(u8::is_ascii_lowercase);
    is_upper && hex(digits).is_some_and(|byte| byte != 0 && !matches!(kind(byte), Kind::Unreserved | Kind::Dot))
}

fn rewrite(path: &[u8]) -> Result<String, Fault> {
    if !matches!(path.first(), Some(b'/' | b'\\')) {
        return Err(Fault::NoSlash);
    }
    // All that is put in is ASCII.
    let mut made = String::with_capacity(path.len() + 16);
    let mut at = 0;
    loop {
        // At the begin of a segment, or of what is between two slashes in a row.
        match path.get(at).map(|byte| kind(*byte)) {
            Some(Kind::Slash | Kind::Backslash) => {
                if !made.ends_with('/') {
                    made.push('/');
                }
                at += 1;
                continue;
            }
            None => return Ok(made),
            Some(_) => {}
        }
        let begin = made.len();
        while let Some(byte) = path.get(at) {
            let escaped = *byte == b'%';
            let byte = match (escaped, kind(*byte)) {
                (true, _) => path.get(at + 1..at + 3).and_then(hex).ok_or(Fault::NoEncoding)?,
                (false, Kind::Slash | Kind::Backslash) => break,
                (false, _) => *byte,
            };
            at += if escaped { 3 } else { 1 };
            match kind(byte) {
                Kind::Unreserved | Kind::Dot => made.push(char::from(byte)),
                Kind::Reserved if !escaped => made.push(char::from(byte)),
                _ if byte == 0 => return Err(Fault::Nul),
                _ => {
                    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                    made.push('%');
                    made.push(char::from(DIGITS[usize::from(byte >> 4)]));
                    made.push(char::from(DIGITS[usize::from(byte & 15)]));
                }
            }
        }
        match &made[begin..] {
            "." => made.truncate(begin),
            ".." => {
                made.truncate(begin);
                // What stands before is a slash, and before that the segment to take back.
                let before = made.strip_suffix('/').and_then(|before| before.rfind('/'));
                made.truncate(before.ok_or(Fault::AboveRoot)? + 1);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_spelling_of_a_path_has_one_normal_form() {
        for (path, wanted) in [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/%41%7a%2D%5f%7E", "/Az-_~"),
            ("/x/../admin", "/admin"),
            ("/x/%2e%2E/admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/./admin/.", "/admin/"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/a//../b", "/b"),
            ("//admin", "/admin"),
            ("/a///b//", "/a/b/"),
            ("\\admin", "/admin"),
            ("/x\\..\\admin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/a/..%2fb", "/a/..%2Fb"),
            ("/a%5cb", "/a%5Cb"),
            ("/a%2cb,c", "/a%2Cb,c"),
            ("/é{x}", "/%C3%A9%7Bx%7D"),
            ("/%c3%a9", "/%C3%A9"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/.hidden", "/a/.hidden"),
            ("/a..b/c.", "/a..b/c."),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/a:b@c;d=e+f", "/a:b@c;d=e+f"),
        ] {
            let made = normal(path).unwrap();
            assert_eq!(made, wanted, "{path}");
            assert_eq!(normal(&made).unwrap(), made, "the normal form of {path} is its own");
        }
    }

    #[test]
    fn what_is_normal_is_not_copied() {
        for path in ["/", "/a/b.c/d-e_f~/", "/a%20b", "/a:b@c;d=e", "/%C3%A9", "/a/b..c", "/.well-known/..."] {
            assert!(matches!(normal(path), Ok(Cow::Borrowed(_))), "{path}");
        }
    }

    #[test]
    fn a_path_without_a_normal_form_says_why() {
        for (path, fault) in [
            ("", Fault::NoSlash),
            ("a", Fault::NoSlash),
            ("*", Fault::NoSlash),
            ("/%", Fault::NoEncoding),
            ("/%4", Fault::NoEncoding),
            ("/%zz", Fault::NoEncoding),
            ("/%+1", Fault::NoEncoding),
            ("/a%00", Fault::Nul),
            ("/..", Fault::AboveRoot),
            ("/a/../../b", Fault::AboveRoot),
            ("/%2e%2e/b", Fault::AboveRoot),
            ("//../b", Fault::AboveRoot),
        ] {
            assert_eq!(normal(path), Err(fault), "{path}");
        }
    }
}
