//! Paths of items as a catalogue writes them.
//!
//! - `Ac/Power, Ac/Current` is two paths, `Ac/L[1..3]/Power` is three, `Dc/In/[V|I|P]` too.
//! - `History/Daily/{0..30}/Yield` and `SwitchableOutput/{x}/State` stand for paths that come into being when they are written:
//!   `{0..30}` is a number, `{x}` a label of up to 32 letters, digits and `_`.

use crate::bridge::name::{PATH_LEVELS, is_path_element};
use crate::text::escape;

/// Most paths that one key may stand for, as many as a type may have.
pub const PATHS_MAX: usize = 512;
/// Longest key, in bytes: YAML itself takes no longer one without `?`.
const KEY_MAX: usize = 1024;
/// Longest path, in bytes, with its placeholders filled.
const PATH_MAX: usize = 200;
/// Longest path of a setting, in bytes: the name of the device and of the service come before it there.
const KEPT_PATH_MAX: usize = 160;
/// Longest label, in bytes.
const LABEL_MAX: usize = 32;
/// Largest number in a range.
const NUMBER_MAX: u32 = 9999;

/// What every service has from the start, whatever its type.
const OURS: [&str; 6] = ["/DeviceInstance", "/DeviceName", "/ProductName", "/FirmwareVersion", "/Connected", "/Mgmt"];

/// One level of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment<'a> {
    Fixed(&'a str),
    Range(u32, u32),
    Label,
}

impl<'a> Segment<'a> {
    pub fn parse(text: &'a str) -> Option<Self> {
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            None => is_path_element(text).then_some(Self::Fixed(text)),
            Some("x") => Some(Self::Label),
            Some(range) => self::range(range).map(|(first, last)| Self::Range(first, last)),
        }
    }

    pub fn matches(self, text: &str) -> bool {
        match self {
            Self::Fixed(fixed) => text == fixed,
            Self::Label => text.len() <= LABEL_MAX && is_path_element(text),
            // canonical: 07 is not 7
            Self::Range(first, last) => text.parse().is_ok_and(|n: u32| (first..=last).contains(&n) && n.to_string() == text),
        }
    }

    /// Most bytes of what it stands for.
    fn width(self) -> usize {
        match self {
            Self::Fixed(text) => text.len(),
            Self::Range(_, last) => last.to_string().len(),
            Self::Label => LABEL_MAX,
        }
    }
}

/// All paths that a key stands for, each with its leading slash; placeholders stay as they are. The error says what to write.
pub fn expand(key: &str) -> Result<Vec<String>, String> {
    if key.len() > KEY_MAX {
        return Err(format!("the key is longer than {KEY_MAX} bytes; write several"));
    }
    let mut paths = Vec::new();
    for part in key.split(',') {
        let part = part.trim();
        let expanded = alternatives(part.strip_prefix('/').unwrap_or(part))?;
        if paths.len() + expanded.len() > PATHS_MAX {
            return Err(too_many());
        }
        paths.extend(expanded.into_iter().map(|path| format!("/{path}")));
    }
    paths.iter().try_for_each(|path| check(path))?;
    Ok(paths)
}

/// Whether localsettings takes a setting under this path.
pub fn check_kept(path: &str) -> Result<(), String> {
    if segments(path).any(|segment| matches!(segment, Some(Segment::Fixed(text)) if text.starts_with('_'))) {
        return Err("a part that begins with _ cannot be kept as a setting; remove `persist`".into());
    }
    if width(path) > KEPT_PATH_MAX {
        return Err(format!("a path of more than {KEPT_PATH_MAX} bytes cannot be kept as a setting; shorten it"));
    }
    Ok(())
}

/// The levels of a path; `None` for one that cannot be.
pub fn segments(path: &str) -> impl Iterator<Item = Option<Segment<'_>>> {
    path.split('/').skip(1).map(Segment::parse)
}

fn check(path: &str) -> Result<(), String> {
    let known = "write words of letters, digits and _ with / between them, with [1..3], [A|B], {0..9} or {x} where several are meant";
    if segments(path).any(|segment| segment.is_none()) {
        return Err(format!("`{}` is not a path; {known}", escape(path.get(1..).unwrap_or_default())));
    }
    if segments(path).filter(|segment| *segment == Some(Segment::Label)).count() > 1 {
        return Err("it has more than one {x}; keep one".into());
    }
    if width(path) > PATH_MAX {
        return Err(format!("the path is longer than {PATH_MAX} bytes; shorten it"));
    }
    if segments(path).count() > PATH_LEVELS {
        return Err(format!("the path has more than {PATH_LEVELS} levels; shorten it"));
    }
    let is_ours = |ours: &str| path.strip_prefix(ours).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if OURS.into_iter().any(is_ours) {
        return Err("every service has this from the daemon itself; remove it".into());
    }
    Ok(())
}

fn width(path: &str) -> usize {
    segments(path).flatten().fold(0, |sum, segment| sum + 1 + segment.width())
}

/// Writes out `[1..3]` and `[A|B]`.
fn alternatives(part: &str) -> Result<Vec<String>, String> {
    let mut paths = vec![String::new()];
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((inner, after)) = after.split_once(']') else {
            return Err("a [ has no ]; write [1..3] or [A|B]".into());
        };
        let mut choices = Vec::new();
        for choice in inner.split('|') {
            match range(choice) {
                Some((first, last)) if (last - first) as usize >= PATHS_MAX => return Err(too_many()),
                Some((first, last)) => choices.extend((first..=last).map(|n| n.to_string())),
                None if is_path_element(choice) => choices.push(choice.to_owned()),
                None => return Err(format!("[{}] is not known; write [1..3] or [A|B]", escape(inner))),
            }
            if paths.len() * choices.len() > PATHS_MAX {
                return Err(too_many());
            }
        }
        paths = paths.iter().flat_map(|path| choices.iter().map(move |choice| format!("{path}{before}{choice}"))).collect();
        rest = after;
    }
    paths.iter_mut().for_each(|path| path.push_str(rest));
    Ok(paths)
}

fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once("..")?;
    let number = |text: &str| text.parse().ok().filter(|n: &u32| *n <= NUMBER_MAX && n.to_string() == text);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn too_many() -> String {
    format!("it stands for more than {PATHS_MAX} paths; write fewer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands() {
        for (key, paths) in [
            ("Soc", &["/Soc"][..]),
            ("/Soc", &["/Soc"]),
            ("Ac/Power , /Ac/Current", &["/Ac/Power", "/Ac/Current"]),
            ("Ac/In/[1..2]/L[1..2]/V", &["/Ac/In/1/L1/V", "/Ac/In/1/L2/V", "/Ac/In/2/L1/V", "/Ac/In/2/L2/V"]),
            ("Dc/[V|0..1]", &["/Dc/V", "/Dc/0", "/Dc/1"]),
            ("Energy/AcIn[1..2]ToAcOut", &["/Energy/AcIn1ToAcOut", "/Energy/AcIn2ToAcOut"]),
            ("Pv/{0..3}/[V|P]", &["/Pv/{0..3}/V", "/Pv/{0..3}/P"]),
        ] {
            assert_eq!(expand(key).unwrap(), paths, "{key}");
        }
        assert_eq!(expand("A[1..512]").unwrap().len(), 512);
    }

    #[test]
    fn refuses() {
        let path = "is not a path; write words of letters, digits and _ with / between them, with [1..3], [A|B], {0..9} or {x} where several are meant";
        for (key, why) in [
            ("", format!("`` {path}")),
            ("/", format!("`` {path}")),
            ("a//b", format!("`a//b` {path}")),
            ("a/b/", format!("`a/b/` {path}")),
            ("a b", format!("`a b` {path}")),
            ("a,", format!("`` {path}")),
            ("a]", format!("`a]` {path}")),
            ("ä", format!("`ä` {path}")),
            ("a/{y}", format!("`a/{{y}}` {path}")),
            ("a/b{x}", format!("`a/b{{x}}` {path}")),
            ("a/{3..1}", format!("`a/{{3..1}}` {path}")),
            ("a[1..3", "a [ has no ]; write [1..3] or [A|B]".into()),
            ("a[3..1]", "[3..1] is not known; write [1..3] or [A|B]".into()),
            ("a[01..3]", "[01..3] is not known; write [1..3] or [A|B]".into()),
            ("a[]", "[] is not known; write [1..3] or [A|B]".into()),
            ("a/{x}/{x}", "it has more than one {x}; keep one".into()),
            ("a[1..513]", "it stands for more than 512 paths; write fewer".into()),
            ("a[0..9][0..9][0..9]", "it stands for more than 512 paths; write fewer".into()),
            ("a[0..9999][0..9999][0..9999]", "it stands for more than 512 paths; write fewer".into()),
            (&"a,".repeat(513), "the key is longer than 1024 bytes; write several".into()),
            (&["a"; 65].join("/"), "the path has more than 64 levels; shorten it".into()),
            (&"a".repeat(200), "the path is longer than 200 bytes; shorten it".into()),
            (&format!("{}/{{x}}", "a".repeat(170)), "the path is longer than 200 bytes; shorten it".into()),
            ("Mgmt/Connection", "every service has this from the daemon itself; remove it".into()),
            ("/DeviceInstance", "every service has this from the daemon itself; remove it".into()),
        ] {
            assert_eq!(expand(key), Err(why), "{key}");
        }
        assert!(expand("ConnectedLoads").is_ok());
    }

    #[test]
    fn what_placeholders_stand_for() {
        for (segment, text, matches) in [
            (Segment::Range(0, 30), "0", true),
            (Segment::Range(0, 30), "30", true),
            (Segment::Range(0, 30), "31", false),
            (Segment::Range(0, 30), "07", false),
            (Segment::Range(0, 30), "+7", false),
            (Segment::Label, "output_1", true),
            (Segment::Label, "", false),
            (Segment::Label, "a-b", false),
            (Segment::Label, "abcdefghijklmnopqrstuvwxyz012345", true),
            (Segment::Label, "abcdefghijklmnopqrstuvwxyz0123456", false),
            (Segment::Fixed("Daily"), "Daily", true),
            (Segment::Fixed("Daily"), "daily", false),
        ] {
            assert_eq!(segment.matches(text), matches, "{segment:?} {text}");
        }
    }

    #[test]
    fn settings() {
        assert!(check_kept("/Ac/_1x").is_err());
        assert!(check_kept(&format!("/{}", "a".repeat(159))).is_ok());
        assert!(check_kept(&format!("/{}", "a".repeat(160))).is_err());
        assert!(check_kept(&format!("/{{x}}/{}", "a".repeat(127))).is_err());
        assert!(check_kept("/SwitchableOutput/{x}/Settings/Type").is_ok());
    }
}
