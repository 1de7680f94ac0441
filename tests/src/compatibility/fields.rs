//! The fields of a type, as serde sees them: found by deserializing one value of it in which everything is there.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// The paths of all fields that a document of type `T` can have, `a.b` below `a`, `a[].b` in the elements of a list, those
/// of structures in a map behind `a{}`.
///
/// `texts` are words for fields that do not take any: path and word.
///
/// # Errors
/// The field that does not take the word that it is tried with.
pub fn of<T: for<'a> Deserialize<'a>>(texts: &[(&str, &str)]) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    T::deserialize(Everything { path: String::new(), texts, found: &mut found }).map_err(|Refused(why)| why)?;
    Ok(found)
}

/// What a key is, and a text that has no word of its own.
const TEXT: &str = "text";

#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl de::Error for Refused {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Self(why.to_string())
    }
}

/// A value that has what it is asked for.
struct Everything<'f> {
    path: String,
    texts: &'f [(&'f str, &'f str)],
    found: &'f mut BTreeSet<String>,
}

impl Everything<'_> {
    fn at(&mut self, path: String) -> Everything<'_> {
        Everything { path, texts: self.texts, found: self.found }
    }

    fn text(&self) -> &str {
        self.texts.iter().find(|(path, _)| *path == self.path).map_or(TEXT, |(_, text)| text)
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $value:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            visitor.$visit($value)
        })*
    };
}

macro_rules! texts {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
            visitor.visit_str(self.text())
        })*
    };
}

impl<'de> Deserializer<'de> for Everything<'_> {
    type Error = Refused;

    numbers! {
        deserialize_bool visit_bool true;
        deserialize_i8 visit_i8 1;
        deserialize_i16 visit_i16 1;
        deserialize_i32 visit_i32 1;
        deserialize_i64 visit_i64 1;
        deserialize_u8 visit_u8 1;
        deserialize_u16 visit_u16 1;
        deserialize_u32 visit_u32 1;
        deserialize_u64 visit_u64 1;
        deserialize_f32 visit_f32 1.0;
        deserialize_f64 visit_f64 1.0;
        deserialize_char visit_char 'c';
    }

    texts! { deserialize_str deserialize_string deserialize_any deserialize_identifier }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_bytes(self.text().as_bytes())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_bytes(self.text().as_bytes())
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_seq(One { value: Some(self), suffix: "[]" })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_map(One { value: Some(self), suffix: "{}" })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        visitor.visit_map(Fields { whole: self, left: fields, current: "" })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let first = variants.first().copied().unwrap_or_default();
        let variant: StrDeserializer<'_, Refused> = first.into_deserializer();
        visitor.visit_enum(Named(variant))
    }
}

/// A list or a map with one element.
struct One<'f> {
    value: Option<Everything<'f>>,
    suffix: &'static str,
}

impl One<'_> {
    fn take<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        let Some(mut value) = self.value.take() else { return Ok(None) };
        let path = format!("{}{}", value.path, self.suffix);
        seed.deserialize(value.at(path)).map(Some)
    }
}

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Refused;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        self.take(seed)
    }
}

impl<'de> MapAccess<'de> for One<'_> {
    type Error = Refused;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        let key: StrDeserializer<'_, Refused> = TEXT.into_deserializer();
        self.value.as_ref().map(|_| seed.deserialize(key)).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        self.take(seed)?.ok_or_else(|| Refused("a value without a key".to_owned()))
    }
}

/// A structure with all of its fields.
struct Fields<'f> {
    whole: Everything<'f>,
    left: &'static [&'static str],
    current: &'static str,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Refused;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Refused> {
        let Some((first, left)) = self.left.split_first() else { return Ok(None) };
        (self.current, self.left) = (first, left);
        let key: StrDeserializer<'_, Refused> = first.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Refused> {
        let separator = if self.whole.path.is_empty() { "" } else { "." };
        let path = format!("{}{separator}{}", self.whole.path, self.current);
        self.whole.found.insert(path.clone());
        seed.deserialize(self.whole.at(path.clone())).map_err(|Refused(why)| Refused(format!("{path}: {why}")))
    }
}

/// The first of an enumeration's words.
struct Named(StrDeserializer<'static, Refused>);

impl<'de> EnumAccess<'de> for Named {
    type Error = Refused;
    type Variant = Unit;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Unit), Refused> {
        seed.deserialize(self.0).map(|value| (value, Unit))
    }
}

struct Unit;

impl<'de> de::VariantAccess<'de> for Unit {
    type Error = Refused;

    fn unit_variant(self) -> Result<(), Refused> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Refused> {
        let value: U32Deserializer<Refused> = 1u32.into_deserializer();
        seed.deserialize(value)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Refused> {
        Err(Refused("an enumeration with values".to_owned()))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Refused> {
        Err(Refused("an enumeration with values".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "its fields are named, never read")]
    struct Outer {
        #[serde(rename = "renamed")]
        list: Option<Vec<Inner>>,
        map: HashMap<String, Inner>,
        word: Word,
    }

    #[derive(Deserialize)]
    #[expect(dead_code, reason = "its fields are named, never read")]
    struct Inner {
        number: Option<i64>,
        #[serde(deserialize_with = "number")]
        text: u32,
    }

    #[derive(Deserialize)]
    enum Word {
        A,
    }

    /// Takes one word and no other.
    fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }

    #[test]
    fn every_field_has_its_path() {
        let texts = [("map{}.text", "1"), ("renamed[].text", "2")];
        let fields: Vec<_> = of::<Outer>(&texts).unwrap().into_iter().collect();
        let wanted = ["map", "map{}.number", "map{}.text", "renamed", "renamed[].number", "renamed[].text", "word"];
        assert_eq!(fields, wanted);
        // One that takes no word that it gets is an error that names it.
        let cause = of::<Outer>(&texts[..1]).unwrap_err();
        assert!(cause.starts_with("renamed: renamed[].text: "), "{cause}");
    }
}
