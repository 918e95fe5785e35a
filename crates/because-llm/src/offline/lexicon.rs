use std::collections::HashMap;
use std::sync::LazyLock;

/// What a word can do in a phrase. No part-of-speech tagging: closed classes by list, the rest by its ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Carries no content and ends a phrase.
    Stop,
    /// A subject pronoun: what follows is a verb.
    Subject,
    /// `in`, `at`, `near`: a capitalised word behind it names a place.
    Place,
    /// `a`, `an`.
    Article,
    /// `of`, allowed inside a phrase.
    Of,
    /// `and`, allowed inside a phrase.
    And,
    /// `is`, `was`: what follows describes what stands before.
    Copula,
    /// `very`, `so`: skipped between a copula and its adjective.
    Degree,
    /// `not`, `never`: turns what follows.
    Negation,
    /// `but`, `although`: begins another clause.
    Contrast,
    /// No letter in it.
    Number,
    /// Says how, not what.
    Adverb,
    /// Describes; cannot end a phrase.
    Adjective,
    /// Praises without saying anything about what is praised.
    Praise,
    /// Blames.
    Blame,
    /// A noun so general that it says something only beside another word.
    General,
    /// An `-ed` word.
    Participle,
    /// Everything else, mostly nouns.
    Content,
    /// A run of characters of a script written without spaces.
    Ideograph,
}

/// The class of a word in lower case.
pub(super) fn class_of(lower: &str) -> Class {
    if let Some(&class) = LISTED.get(lower) {
        return class;
    }
    if let Some(Class::General) = lower
        .strip_suffix('s')
        .and_then(|singular| LISTED.get(singular))
    {
        return Class::General;
    }
    if !lower.chars().any(char::is_alphabetic) {
        return Class::Number;
    }
    let bare = lower.strip_suffix("'s").unwrap_or(lower);
    if bare.len() != lower.len() {
        return LISTED.get(bare).copied().unwrap_or(Class::Content);
    }
    if lower.ends_with("n't") {
        return Class::Negation;
    }
    if lower.contains('\'')
        && ["'ll", "'ve", "'re", "'d", "'m"]
            .iter()
            .any(|end| lower.ends_with(end))
    {
        return Class::Stop;
    }
    by_ending(lower)
}

fn by_ending(lower: &str) -> Class {
    let long = lower.chars().count();
    let ends = |endings: &[&str]| endings.iter().any(|end| lower.ends_with(end));
    if long < 2 {
        return Class::Stop;
    }
    if long >= 5 && lower.ends_with("ly") {
        return Class::Adverb;
    }
    if long >= 5 && lower.ends_with("ed") {
        return Class::Participle;
    }
    let adjective = (long >= 6
        && ends(&[
            "ful", "ous", "ible", "less", "able", "ative", "itive", "est",
        ]))
        || (lower.contains('-')
            && ends(&[
                "-quality",
                "-friendly",
                "-free",
                "-conscious",
                "-based",
                "-style",
                "-made",
                "-paced",
            ]));
    if adjective {
        Class::Adjective
    } else {
        Class::Content
    }
}

static LISTED: LazyLock<HashMap<&'static str, Class>> = LazyLock::new(|| {
    let lists = [
        (Class::Stop, STOP),
        (Class::Stop, VERBS),
        (Class::Subject, SUBJECTS),
        (Class::Place, PLACE),
        (Class::Article, "a an"),
        (Class::Of, "of"),
        (Class::And, "and &"),
        (Class::Copula, "is was are were be been being"),
        (Class::Degree, DEGREE),
        (Class::Negation, NEGATION),
        (
            Class::Contrast,
            "but although though however except yet whereas unless unfortunately",
        ),
        (Class::Adverb, ADVERBS),
        (Class::Adjective, ADJECTIVES),
        (Class::Praise, PRAISE),
        (Class::Blame, BLAME),
        (Class::General, GENERAL),
        (Class::Content, NOT_BY_ENDING),
    ];
    lists
        .iter()
        .flat_map(|&(class, words)| words.split_whitespace().map(move |word| (word, class)))
        .collect()
});

const SUBJECTS: &str = "i we they he she you it who which that";
const PLACE: &str = "in at near around from";
const DEGREE: &str = "very so super really quite pretty always also too extremely incredibly truly just absolutely such rather
    fairly totally still both all consistently particularly especially";
const NEGATION: &str = "not no never none nothing nobody hardly barely without cannot neither nor despite lack lacks lacked lacking";
const ADVERBS: &str =
    "often ever soon almost maybe perhaps sometimes somewhat well together instead away
    definitely generally usually freshly locally daily";

/// Function words, and the words that our own sentences are built from, so that a text of ours read again gives back
/// what it is about and not how it is phrased.
const STOP: &str = "the this these those there here then than as by for on to with into onto over under up down out off about after
    again against before below between during until while when where why how what whom whose because if or either else
    am do does did doing done have has had having can could should would may might must shall will ought let
    me my mine myself us our ours ourselves your yours yourself him his himself her hers herself its itself them their
    theirs themselves one ones anyone everyone someone somebody anybody everybody anything something everything
    other others another any each every few more most much many some same own only even now once back first last next
    least less lot lots bit kind kinds sort sorts type types couple part parts way ways per via etc eg ie vs
    thing things stuff time times day days week weeks month months year years today yesterday tonight hour hours minute minutes
    yes yeah okay ok wow oh please thank thanks cant dont im ive id wont isnt wasnt
    user users people person customer customers reader readers consumer consumers individual individuals those
    text texts several across since besides beyond along within throughout toward towards among upon
    likely particular various different certain similar able sure able right whole entire main overall simply
    like likes liked unlike review reviews rating ratings star stars summary profile profiles preference preferences taste tastes
    closest centre reviewer reviewers foodie foodies scratch suggest suggests suggested reminiscent
    interest interests interested fan fans lover lovers enthusiast enthusiasts seeker seekers word words";

/// Verbs that say that somebody does something, not what it is about.
const VERBS: &str = "enjoy enjoys enjoyed enjoying appreciate appreciates appreciated appreciating love loves loved loving prefer
    prefers preferred preferring suit suits suited recommend recommends recommended want wants wanted wanting need needs needed
    seek seeks seeking sought look looks looked looking find finds found finding know knows knew known think thinks thought
    feel feels felt feeling say says said saying tell tells told see sees saw seen seeing seem seems seemed hear heard
    get gets got getting gotten give gives gave given giving go goes went gone going come comes came coming take takes took
    taken taking make makes making made put puts putting use uses used using try tries tried trying keep keeps kept
    bring brings brought leave leaves left ask asks asked wait waits waited visit visits visited visiting order orders ordered
    ordering buy buys bought buying purchase purchased read reads reading eat eats ate eaten eating drink drank
    play played plays watch watched watching serve serves served serving offer offers offered provide
    provides provided providing include includes included including feature features featured featuring arrive arrived become becomes
    became add adds added start starts started stop stopped end ends ended happen happened help helps helped helping
    let lets show shows showed shown turn turned work works worked return returned returning pay paid cost costs sit sat sitting
    stay stayed stand stands live lives lived walk walked walking drive driving drove choose choosing chose expect expected
    hope hoped believe guess wish check checked highlight highlights mention mentions mentioned mentioning value values valued
    valuing focus focuses focused combine combines combining range ranges ranging share shares shared sharing explore exploring
    indulge indulging cater caters catering draw draws drawn match matches matched matching fit fits meet meets fall falls
    adds describe describes described care cares call called run runs ran send sent point points talk speak
    impressed satisfied pleased blew blown ended wanted decided noticed based located situated opened remains remain delivers deliver
    makes having likes liking craving crave craves loves specializing specializes known boasts boasting ensure ensures perfect
    favor favors favour favours decide decides rest rests lead leads count counts hold holds hurt hurts drag drags change changes changed shine shines
    discover discovers discovered discovering support supports supported supporting favoring favouring lose loses losing slap slaps unwind participate participates attract attracts
    note notes appeal appeals appealing";

const PRAISE: &str = "good great nice best better excellent amazing awesome wonderful fantastic incredible outstanding
    fabulous superb lovely favorite favourite perfect ideal top high higher decent solid fine phenomenal exceptional special
    notable popular impressive worth positive happy delightful pleasant enjoyable beautiful stunning cool fun";

const BLAME: &str = "bad worse worst slow rude terrible awful horrible disappointing disappointed disappointment overpriced dirty
    bland mediocre boring broken broke poor poorly cold stale soggy undercooked overcooked burnt unprofessional unfriendly
    expensive lousy gross disgusting annoying cheaply flimsy defective useless waste wasted avoid complaint complain complained
    complaints problem problems issue issues mistake mistakes wrong refund sick sadly greasy tasteless dry crowded noisy
    hate hated dull predictable confusing fails failed fail faulty uncomfortable weak dislike dislikes disliked violation violations clunky";

const ADJECTIVES: &str = "cozy cosy friendly attentive fresh creative unique authentic traditional modern classic casual vibrant lively
    warm clean comfortable spacious quick fast prompt efficient knowledgeable professional helpful courteous generous large small
    big huge tiny long short new old young local flavorful flavourful tasty delicious crispy crunchy juicy tender spicy sweet savory
    savoury rich creamy light hot fried smoked grilled roasted baked homemade handmade hand-crafted handcrafted affordable
    reasonable cheap inexpensive relaxed relaxing quiet calm peaceful romantic elegant charming quaint rustic stylish trendy hip
    upscale fancy simple basic diverse wide varied extensive full outdoor indoor healthy organic natural vegan
    vegetarian gluten-free dairy-free kid-friendly dog-friendly family-friendly innovative inventive original smart clever
    funny witty dark deep gripping moving touching emotional thoughtful thought-provoking complex sharp sturdy durable soft
    smooth bright colorful colourful easy hard strong heavy loud accommodating welcoming inviting engaging exciting
    interesting fascinating intriguing immersive challenging hidden free early late open close nearby convenient busy packed
    italian mexican thai chinese japanese korean french greek indian vietnamese american cuban spanish peruvian german
    southern northern eastern western cajun asian european african latin mediterranean cheesy fluffy moist refreshing seasonal
    gourmet artisanal premium high-end high-quality well-crafted well-made well-prepared well-written made-to-order slow-paced
    fast-paced character-driven story-driven unusual exotic bold subtle compact lightweight portable wireless quirky funky
    laid-back low-key top-notch up-to-date real true live black white red green blue golden historic scenic cultural musical
    sensitive gentle kind caring patient honest fair polite private personal personalized social mixed memorable ample
    dim intimate airy sunny shady leafy fruity hoppy malty smoky tangy zesty buttery flaky hearty filling inside outside
    specialty signature dead alive nonfiction fictional historical philosophical political scientific literary epic violent tense suspenseful";

const GENERAL: &str = "two three four five six seven eight nine ten eleven twelve twenty thirty forty hundred dozen half
    place places food foods service services staff menu menus price prices pricing quality product products item
    items movie movies film films book books story stories game games experience experiences atmosphere atmospheres ambiance
    ambience environment environments vibe vibes decor restaurant restaurants spot spots option options variety varieties selection
    selections business businesses location locations offerings choice choices establishment establishments dish dishes
    meal meals setting settings area areas space spaces store stores shop shops company world life feel touch
    team value amount number level series author read show event events feature element elements style styles
    guy guys man woman lady friend friends family kids group groups city town street door table
    fact idea reason opinion addition mix blend combination array range attention detail details focus sense
    flavor flavors flavour flavours presentation portion portions owner owners server servers waiter waitress bartender bartenders
    employee employees manager drink drinks side sides plus night evening morning afternoon weekend lunch dinner
    hand hands home house room line order size piece visit trip content twist approach plenty host hosts cuisine
    cuisines ingredient ingredients goods dining length fare knowledge emphasis love joy use edition part";

/// Words whose ending would put them into the wrong class.
const NOT_BY_ENDING: &str = "table vegetable vegetables cable forest harvest guest quest chest west contest interest request
    bread red seed seaweed feed weed speed hybrid shed hundred sacred family belly jelly jolly fly bully italy july assembly
    anomaly butterfly homily bed reed breed crossbred naked infrared collective olive native adventure breast invest priest
    digest suspense embed steed creed need greed thread spread ted fred wicked united limited tweed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_get_the_class_that_keeps_phrases_readable() {
        let expected = [
            ("the", Class::Stop),
            ("don't", Class::Negation),
            ("they'll", Class::Stop),
            ("luke's", Class::Content),
            ("gracefully", Class::Adverb),
            ("grilled", Class::Adjective),
            ("braised", Class::Participle),
            ("vegetable", Class::Content),
            ("adventurous", Class::Adjective),
            ("1999", Class::Number),
            ("espresso", Class::Content),
        ];
        for (word, class) in expected {
            assert_eq!(class_of(word), class, "{word}");
        }
    }
}
