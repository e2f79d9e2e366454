//! The three types of a setting, and how anything that is written becomes one of them.

use serde::{Deserialize, Serialize};
use zbus::Variant;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Int,
    Float,
    Text,
}

impl Kind {
    /// As `AddSetting` names it.
    pub fn of_name(name: &str) -> Option<Self> {
        match name {
            "i" => Some(Self::Int),
            "f" => Some(Self::Float),
            "s" => Some(Self::Text),
            _ => None,
        }
    }

    /// As `AddSettings` sees it, by the default's own type.
    pub fn of_default(value: &Variant<'_>) -> Option<Self> {
        match value {
            Variant::I32(_) | Variant::I64(_) => Some(Self::Int),
            Variant::F64(_) => Some(Self::Float),
            Variant::Str(_) => Some(Self::Text),
            _ => None,
        }
    }

    /// Brings a value to this type; `None` when it cannot be.
    pub fn bring(self, value: &Variant<'_>) -> Option<Value> {
        match self {
            Self::Int => int(value).map(Value::Int),
            Self::Float => float(value).map(Value::Float),
            Self::Text => text(value).map(Value::Text),
        }
    }

    pub fn zero(self) -> Value {
        match self {
            // strings have no limits; where one must be said, it is the number
            Self::Int | Self::Text => Value::Int(0),
            Self::Float => Value::Float(0.0),
        }
    }
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Value {
    Int(i64),
    Float(f64),
    Text(String),
}

impl Value {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Int(_) => Kind::Int,
            Self::Float(_) => Kind::Float,
            Self::Text(_) => Kind::Text,
        }
    }

    pub fn number(&self) -> f64 {
        match self {
            #[allow(clippy::cast_precision_loss)]
            Self::Int(number) => *number as f64,
            Self::Float(number) => *number,
            Self::Text(_) => 0.0,
        }
    }

    pub fn variant(&self) -> Variant<'static> {
        match self {
            Self::Int(number) => i32::try_from(*number).map_or(Variant::I64(*number), Variant::I32),
            Self::Float(number) => Variant::F64(*number),
            Self::Text(text) => Variant::from(text.clone()),
        }
    }

    pub fn show(&self) -> String {
        match self {
            Self::Int(number) => number.to_string(),
            Self::Float(number) => format!("{number:?}"),
            Self::Text(text) => text.clone(),
        }
    }
}

fn int(value: &Variant<'_>) -> Option<i64> {
    Some(match value {
        Variant::U8(n) => (*n).into(),
        Variant::I16(n) => (*n).into(),
        Variant::U16(n) => (*n).into(),
        Variant::I32(n) => (*n).into(),
        Variant::U32(n) => (*n).into(),
        Variant::I64(n) => *n,
        Variant::U64(n) => i64::try_from(*n).ok()?,
        Variant::Bool(b) => (*b).into(),
        // cut, not rounded
        #[allow(clippy::cast_possible_truncation)]
        Variant::F64(n) if n.is_finite() && n.abs() < 9e18 => *n as i64,
        Variant::Str(text) => text.as_str().trim().parse().ok()?,
        Variant::Variant(inner) => int(inner)?,
        _ => return None,
    })
}

fn float(value: &Variant<'_>) -> Option<f64> {
    match value {
        Variant::F64(n) => Some(*n),
        Variant::Str(text) => text.as_str().trim().parse().ok(),
        Variant::Variant(inner) => float(inner),
        #[allow(clippy::cast_precision_loss)]
        other => int(other).map(|n| n as f64),
    }
}

fn text(value: &Variant<'_>) -> Option<String> {
    match value {
        Variant::Str(text) => Some(text.to_string()),
        Variant::F64(n) => Some(format!("{n:?}")),
        Variant::Variant(inner) => text(inner),
        other => int(other).map(|n| n.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brought_to_the_type() {
        for (kind, value, wanted) in [
            (Kind::Int, Variant::from(5.9), Some(Value::Int(5))),
            (Kind::Int, Variant::from(-5.9), Some(Value::Int(-5))),
            (Kind::Int, Variant::from("7"), Some(Value::Int(7))),
            (Kind::Int, Variant::from("7.5"), None),
            (Kind::Int, Variant::from(f64::NAN), None),
            (Kind::Int, Variant::from(true), Some(Value::Int(1))),
            (Kind::Float, Variant::from(3), Some(Value::Float(3.0))),
            (Kind::Float, Variant::from("x"), None),
            (Kind::Text, Variant::from(3), Some(Value::Text("3".into()))),
            (Kind::Text, Variant::from(Vec::<i32>::new()), None),
        ] {
            assert_eq!(kind.bring(&value), wanted, "{kind:?} {value}");
        }
    }
}
