//! What several targets ask of text that they made.

/// Nothing that moves a cursor, rings a bell or turns the direction of text,
/// but line ends.
///
/// # Panics
/// Where there is such a character.
pub fn assert_harmless(text: &str) {
    let bad = text.chars().find(|&character| character != '\n' && postern_core::audit::is_harmful(character));
    assert_eq!(bad, None, "{text:?}");
}
