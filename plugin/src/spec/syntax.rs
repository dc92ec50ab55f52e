//! Owns the form of a specification: `key=value` between commas, with quotes and brackets. Never
//! knows what a key means.

use super::error::SpecError;

/// One key of a specification, and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// The key, one of those that were asked for.
    pub key: &'a str,
    /// The value: without its quotes, and without the blanks around it.
    pub value: String,
}

/// The fields of `text`, in the order in which they come; `known` are the keys there can be.
///
/// The form is cloud-hypervisor's: `key=value` between commas. A comma between double quotes or
/// between brackets is part of the value; two double quotes side by side between quotes are one.
/// A key without anything after its `=` is left out, as if it had not been written.
///
/// ```
/// use vm_remap::spec::fields;
///
/// let all = fields("path=\"a,b\",sizes=[1,2]", &["path", "sizes"])?;
/// let values: Vec<_> = all.iter().map(|field| field.value.as_str()).collect();
/// assert_eq!(values, ["a,b", "[1,2]"]);
/// # Ok::<(), vm_remap::spec::SpecError>(())
/// ```
///
/// # Errors
/// [`SpecError::Syntax`] where quotes or brackets do not match, where a comma has nothing beside it
/// or a key has no `=`; [`SpecError::UnknownKey`]; [`SpecError::Twice`].
pub fn fields<'a>(text: &str, known: &[&'a str]) -> Result<Vec<Field<'a>>, SpecError> {
    let mut all: Vec<Field<'a>> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for part in split(text)? {
        let syntax = |problem| SpecError::Syntax {
            text: part.to_owned(),
            problem,
        };
        let Some((key, value)) = part.split_once('=') else {
            return Err(if known.contains(&part.trim()) {
                syntax("it has no value; write key=value")
            } else if nearest(part.trim(), known).is_some() {
                unknown(part.trim(), known)
            } else {
                syntax("it has no key; write key=value")
            });
        };
        let key = key.trim();
        let Some(key) = known.iter().copied().find(|known| *known == key) else {
            return Err(unknown(key, known));
        };
        if seen.contains(&key) {
            let key = key.to_owned();
            return Err(SpecError::Twice { key });
        }
        seen.push(key);
        let value = value.trim();
        if !value.is_empty() {
            let value = unquoted(value);
            all.push(Field { key, value });
        }
    }
    Ok(all)
}

/// The error for a key that is none of `known`: it names the nearest of them, and all.
#[must_use]
pub fn unknown(key: &str, known: &[&str]) -> SpecError {
    SpecError::UnknownKey {
        key: key.to_owned(),
        nearest: nearest(key, known).map(str::to_owned),
        known: known.join(", "),
    }
}

/// The one of `known` that looks most like `key`, if one does.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::jaro(key, known), *known))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// What stands between the commas that are neither quoted nor in brackets.
fn split(text: &str) -> Result<Vec<&str>, SpecError> {
    let error = |problem| SpecError::Syntax {
        text: text.to_owned(),
        problem,
    };
    let mut parts = Vec::new();
    let mut rest = text.trim();
    if rest.is_empty() {
        return Ok(parts);
    }
    loop {
        let end = comma(rest).map_err(error)?;
        let (part, after) = match end {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if part.trim().is_empty() {
            return Err(error("a comma has nothing beside it"));
        }
        parts.push(part);
        let Some(after) = after.strip_prefix(',') else {
            return Ok(parts);
        };
        rest = after;
    }
}

/// Where the first comma stands that is neither quoted nor in brackets.
fn comma(text: &str) -> Result<Option<usize>, &'static str> {
    let mut depth = 0_usize;
    let mut quoted = false;
    for (at, char) in text.char_indices() {
        match char {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth = depth.saturating_add(1),
            ']' => {
                depth = depth
                    .checked_sub(1)
                    .ok_or("a bracket closes that was not opened")?;
            }
            ',' if depth == 0 => return Ok(Some(at)),
            _ => {}
        }
    }
    match (quoted, depth) {
        (true, _) => Err("a quote is not closed"),
        (false, 0) => Ok(None),
        (false, _) => Err("a bracket is not closed"),
    }
}

/// The value without its quotes. A quote that follows a closing one directly stands for itself.
fn unquoted(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut quoted = false;
    let mut closed = false;
    for char in value.chars() {
        if char != '"' {
            text.push(char);
            closed = false;
            continue;
        }
        if !quoted && closed {
            text.push('"');
        }
        closed = quoted;
        quoted = !quoted;
    }
    text
}

/// The value as [`fields`] reads it back, with quotes where it needs them.
pub(super) fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && value.trim() == value && !value.contains([',', '"', '[', ']']);
    if plain {
        return value.to_owned();
    }
    format!("\"{}\"", value.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(&str, String)> {
        let all = fields(text, &["a", "b"]).unwrap();
        all.into_iter()
            .map(|field| (field.key, field.value))
            .collect()
    }

    fn refused(text: &str) -> String {
        fields(text, &["size", "shared"]).unwrap_err().to_string()
    }

    #[test]
    fn quotes_and_brackets_keep_commas_together() {
        let pair = |key, value: &str| (key, value.to_owned());
        assert_eq!(read(""), []);
        assert_eq!(read("  "), []);
        assert_eq!(read("a=1,b=2"), [pair("a", "1"), pair("b", "2")]);
        assert_eq!(read(" b = x=y , a="), [pair("b", "x=y")]);
        assert_eq!(
            read("a=[1,[2,3]],b=\"x,]\""),
            [pair("a", "[1,[2,3]]"), pair("b", "x,]")]
        );
        assert_eq!(read("a=\"say \"\"hi\"\"\""), [pair("a", "say \"hi\"")]);
        assert_eq!(read("a=\"\""), [pair("a", "")]);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_named() {
        for (text, problem) in [
            ("size=\"1", "a quote is not closed"),
            ("size=[1", "a bracket is not closed"),
            ("size=1]", "a bracket closes that was not opened"),
            ("size=1,", "a comma has nothing beside it"),
            (",size=1", "a comma has nothing beside it"),
            ("size", "it has no value; write key=value"),
            ("1G", "it has no key; write key=value"),
        ] {
            assert_eq!(refused(text), format!("cannot read {text:?}: {problem}"));
        }
    }

    #[test]
    fn a_key_that_is_unknown_or_comes_twice_is_named() {
        assert_eq!(
            refused("sise=1"),
            "cannot use the key \"sise\": did you mean size? there are size, shared"
        );
        assert_eq!(
            refused("share"),
            "cannot use the key \"share\": did you mean shared? there are size, shared"
        );
        let only = fields("window=1", &["size"]).unwrap_err();
        assert_eq!(
            only.to_string(),
            "cannot use the key \"window\": there is only size"
        );
        assert_eq!(
            refused("=1"),
            "cannot use the key \"\": there are size, shared"
        );
        assert_eq!(
            refused("size=1,size=1"),
            "cannot use the key \"size\" twice: leave one of them out"
        );
        assert_eq!(refused("size=,size=1"), refused("size=1,size=1"));
    }
}
