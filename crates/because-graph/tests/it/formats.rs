//! Each raw format as its publisher writes it, with the traps that are known of it.

use std::fs;
use std::io::Write;

use because_core::{Interaction, Item, Rejected, Split, User, jsonl};
use because_graph::{Format, Import, ImportSummary};
use serde_json::{Value, json};

use crate::{Desk, balances};

/// A folder of files, imported as one.
struct Shelf {
    desk: Desk,
    summary: ImportSummary,
}

impl Shelf {
    fn of(format: Format, files: &[(&str, &[u8])]) -> Self {
        let desk = Desk::new();
        let raw = desk.folder.path().join("raw");
        fs::create_dir(&raw).unwrap();
        for (name, bytes) in files {
            fs::write(raw.join(name), bytes).unwrap();
        }
        let summary = Import::new(format, [raw]).run(&desk.out()).unwrap();
        assert!(balances(&summary), "{summary:?}");
        Self { desk, summary }
    }

    fn pair(&self, user: &str, item: &str) -> Interaction {
        let wanted = |row: &Interaction| row.user.as_str() == user && row.item.as_str() == item;
        let rows = self.desk.interactions();
        let found = rows.iter().find(|row| wanted(row));
        found
            .unwrap_or_else(|| panic!("{user} {item} in {rows:?}"))
            .clone()
    }

    fn item(&self, id: &str) -> Item {
        let items = self.desk.out().items().unwrap();
        items
            .into_iter()
            .find(|row| row.item.as_str() == id)
            .unwrap()
    }

    fn user(&self, id: &str) -> User {
        let users = self.desk.out().users().unwrap();
        users
            .into_iter()
            .find(|row| row.user.as_str() == id)
            .unwrap()
    }

    fn rejected(&self) -> Vec<Rejected> {
        jsonl::read_all(&self.desk.out().path("rejected.jsonl")).unwrap()
    }
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn attributes(found: because_core::Attributes) -> Value {
    Value::Object(found)
}

#[test]
fn amazon_of_2014_has_python_for_items_and_json_for_reviews() {
    let reviews = br#"{"reviewerID": "A1", "asin": "B0", "reviewerName": "Ann", "helpful": [0, 1], "reviewText": "Great &amp; loud.<br />Buy it.", "overall": 5.0, "summary": "Yes", "unixReviewTime": 1252800000, "reviewTime": "09 13, 2009"}
{"reviewerID": "A2", "asin": "B0", "helpful": [0, 0], "reviewText": "", "overall": 2.0, "summary": "No &#34;thanks&#34;", "reviewTime": "09 3, 2009"}
{"asin": "B0", "overall": 2.0}
{'reviewerID': 'A3', 'asin': 'B1', 'overall': 3.0, 'reviewText': "It's fine"}
"#;
    let items = br#"{'asin': 'B0', 'title': u'Caf\xe9 &amp; <b>Bar</b> Guitar', 'price': 12.99, 'imUrl': 'http://x/y.jpg', 'brand': "Smith's", 'related': {'also_bought': ['B1']}, 'categories': [['Instruments', 'Guitars'], ['Instruments', 'Gifts']], 'salesRank': {'Music': 7}, 'description': None}
{'asin': 'B1', 'title': __import__('os').system('echo')}
"#;
    let shelf = Shelf::of(
        Format::Amazon2014,
        &[
            ("reviews_Musical_Instruments_5.json.gz", &gz(reviews)),
            ("meta_Musical_Instruments.json.gz", &gz(items)),
            ("README.txt", b"not read"),
            ("ratings_Books.csv", b"A9,B9,4.0,1252800000\n"),
        ],
    );
    let first = shelf.pair("A1", "B0");
    assert_eq!(first.review.as_deref(), Some("Great & loud.\nBuy it."));
    assert_eq!(
        (first.rating, first.timestamp),
        (Some(5.0), Some(1_252_800_000))
    );
    let second = shelf.pair("A2", "B0");
    assert_eq!(
        second.review.as_deref(),
        Some("No \"thanks\""),
        "the headline"
    );
    assert_eq!(second.timestamp, Some(1_251_936_000), "2009-09-03");
    assert_eq!(shelf.pair("A3", "B1").review.as_deref(), Some("It's fine"));
    assert_eq!(shelf.pair("A9", "B9").rating, Some(4.0));
    let item = shelf.item("B0");
    assert_eq!(item.title.as_deref(), Some("Café & Bar Guitar"));
    assert_eq!(
        attributes(item.attributes),
        json!({"price": 12.99, "brand": "Smith's", "categories": ["Instruments", "Guitars", "Gifts"], "salesRank": {"Music": 7}})
    );
    let reasons: Vec<_> = shelf.rejected().into_iter().map(|row| row.reason).collect();
    assert_eq!(
        reasons,
        [
            "unreadable Python literal: neither a number, a text, a list nor a dict (byte 25)",
            "missing user",
        ]
    );
}

#[test]
fn amazon_of_2018_writes_prices_as_text() {
    let reviews = br#"{"overall": 5.0, "vote": "1,204", "verified": true, "reviewTime": "10 4, 2016", "reviewerID": "A1", "asin": "B0", "style": {"Format:": " Hardcover"}, "reviewerName": "Ann", "summary": "Five Stars", "unixReviewTime": 1475539200}
"#;
    let items = br#"{"category": ["Books", "Poetry &amp; Prose"], "description": ["First<br>line", "second"], "title": "Leaves &amp; Grass", "also_buy": ["B7"], "brand": "Whitman", "feature": [], "rank": "4,970 in Books (", "price": "$12.99 - $15.00", "asin": "B0", "imageURLHighRes": ["u"], "main_cat": "<img src=\"https://x/a.png\" class=\"nav\" alt=\"Amazon Books\" />", "similar_item": "<table></table>", "details": {}}
{"title": "var aPageStart = (new Date()).getTime();", "price": ".a-box-inner{background:#fff}", "asin": "B1"}
{"title": "Free one", "price": "Free", "asin": "B2"}
"#;
    let shelf = Shelf::of(
        Format::Amazon2018,
        &[
            ("Books_5.json", reviews),
            ("meta_Books.json", items),
            ("Gift_Cards.csv", b"B2,A7,1.0,1475539200\n"),
        ],
    );
    let review = shelf.pair("A1", "B0");
    assert_eq!(
        (review.review.as_deref(), review.timestamp),
        (Some("Five Stars"), Some(1_475_539_200))
    );
    assert_eq!(
        shelf.pair("A7", "B2").rating,
        Some(1.0),
        "the item stands first"
    );
    let item = shelf.item("B0");
    assert_eq!(item.description.as_deref(), Some("First\nline\nsecond"));
    assert_eq!(
        attributes(item.attributes),
        json!({"category": ["Books", "Poetry & Prose"], "brand": "Whitman", "rank": "4,970 in Books (", "price": 12.99, "price_to": 15.0, "main_cat": "Amazon Books"})
    );
    assert_eq!(
        (
            shelf.item("B1").title,
            attributes(shelf.item("B1").attributes)
        ),
        (None, json!({}))
    );
    assert_eq!(attributes(shelf.item("B2").attributes), json!({"price": 0}));
}

#[test]
fn amazon_of_2023_is_joined_by_the_parent_and_counts_milliseconds() {
    let reviews = br#"{"rating": 4.0, "title": "Fine", "text": "Good<br /><br />read", "images": [], "asin": "EDITION", "parent_asin": "WORK", "user_id": "U1", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": true}
{"rating": 1.0, "title": "Only a headline", "text": "", "asin": "E2", "parent_asin": "W2", "user_id": "U1", "sort_timestamp": 1588687728923}
{"rating": 1.0, "title": "", "text": "", "asin": "E3", "user_id": "U1", "sortTimestamp": "1588687728923"}
"#;
    let items = br#"{"main_category": "Books", "title": "Work", "average_rating": 4.5, "rating_number": 9, "features": ["Signed"], "description": [], "price": "from 14.99", "images": [{"large": "u"}], "videos": [], "store": "S (Author)", "categories": ["Books"], "details": "{\"Pages\": \"12\"}", "parent_asin": "WORK", "bought_together": null, "author": {"avatar": "u", "name": "Jo", "about": []}}
{"title": "No price", "price": "\u2014", "parent_asin": "W2", "details": {}}
"#;
    let shelf = Shelf::of(
        Format::Amazon2023,
        &[
            ("Books.jsonl", reviews),
            ("meta_Books.jsonl", items),
            (
                "Toys.train.csv",
                b"user_id,parent_asin,rating,timestamp\nU2,WORK,5.0,1588687728923\n",
            ),
            (
                "Toys.test.csv.gz",
                &gz(
                    b"user_id,parent_asin,rating,timestamp,history\nU2,W2,5.0,1588687728923,WORK\n",
                ),
            ),
        ],
    );
    let review = shelf.pair("U1", "WORK");
    assert_eq!(review.review.as_deref(), Some("Good\n\nread"));
    assert_eq!(review.timestamp, Some(1_588_687_728));
    let headline = shelf.pair("U1", "W2");
    assert_eq!(
        (headline.review.as_deref(), headline.timestamp),
        (Some("Only a headline"), Some(1_588_687_728))
    );
    let alone = shelf.pair("U1", "E3");
    assert_eq!((alone.review, alone.timestamp), (None, Some(1_588_687_728)));
    let item = shelf.item("WORK");
    assert_eq!(
        (item.title.as_deref(), item.description),
        (Some("Work"), None)
    );
    assert_eq!(
        attributes(item.attributes),
        json!({"main_category": "Books", "average_rating": 4.5, "rating_number": 9, "features": ["Signed"], "price": 14.99, "store": "S (Author)", "categories": ["Books"], "details": {"Pages": "12"}, "author": "Jo"})
    );
    assert_eq!(attributes(shelf.item("W2").attributes), json!({}));
    let benchmark = Shelf::of(
        Format::Amazon2023,
        &[
            (
                "Toys.train.csv",
                b"user_id,parent_asin,rating,timestamp\nU2,W1,5.0,1588687728923\n",
            ),
            (
                "Toys.valid.csv",
                b"user_id,parent_asin,rating,timestamp\nU2,W2,5.0,1588687728923\n",
            ),
            (
                "Toys.test.csv",
                b"user_id,parent_asin,rating,timestamp\nU2,W3,5.0,1588687728923\n",
            ),
        ],
    );
    for (item, split) in [
        ("W1", Split::Train),
        ("W2", Split::Valid),
        ("W3", Split::Test),
    ] {
        assert_eq!(benchmark.pair("U2", item).split, Some(split));
    }
}

#[test]
fn yelp_has_lists_and_literals_in_texts() {
    let reviews = br#"{"review_id":"r1","user_id":"u1","business_id":"b1","stars":3.0,"useful":0,"funny":0,"cool":0,"text":"Mac &amp; cheese","date":"2018-07-07 22:09:11"}
{"review_id":"r2","user_id":null,"business_id":"b1","stars":3.0,"text":"x","date":"2018-07-07 22:09:11"}
"#;
    let businesses = br#"{"business_id":"b1","name":"Turning Point","city":"Philadelphia","stars":4.5,"categories":"Restaurants, Food, Breakfast & Brunch","attributes":{"WiFi":"u'free'","BusinessParking":"{'garage': False, 'lot': True}","Alcohol":"'none'","Empty":null},"hours":null}
{"business_id":"b2","name":"None","categories":null,"attributes":null}
"#;
    let users = br#"{"user_id":"u1","name":"Walker","elite":"2007,2008","friends":"NSCy54eWehBJyZdG2iE84w, pe42u7DcCH2QmI81NX-8qA","fans":2}
"#;
    let tips = br#"{"user_id":"u1","business_id":"b1","text":"Go early","date":"2020-01-01 00:00:00","compliment_count":0}
"#;
    let shelf = Shelf::of(
        Format::Yelp,
        &[
            ("yelp_academic_dataset_review.json", reviews),
            ("yelp_academic_dataset_business.json", businesses),
            ("yelp_academic_dataset_user.json", users),
            ("yelp_academic_dataset_tip.json", tips),
            ("yelp_academic_dataset_checkin.json", b"{}"),
        ],
    );
    assert_eq!(
        shelf.summary.files.len(),
        3,
        "tips and check-ins are not looked for"
    );
    let review = shelf.pair("u1", "b1");
    assert_eq!(
        (review.rating, review.timestamp),
        (Some(3.0), Some(1_531_001_351))
    );
    assert_eq!(review.review.as_deref(), Some("Mac & cheese"));
    let item = shelf.item("b1");
    assert_eq!(item.title.as_deref(), Some("Turning Point"));
    assert_eq!(
        attributes(item.attributes),
        json!({"city": "Philadelphia", "stars": 4.5, "categories": ["Restaurants", "Food", "Breakfast & Brunch"],
               "WiFi": "free", "BusinessParking": {"garage": false, "lot": true}, "Alcohol": "none"})
    );
    assert_eq!(
        attributes(shelf.user("u1").attributes),
        json!({"name": "Walker", "elite": ["2007", "2008"], "fans": 2})
    );

    let tip = shelf.desk.file("x_tip.json", tips);
    let named = Import::new(Format::Yelp, [tip])
        .run(&shelf.desk.out())
        .unwrap();
    assert_eq!(
        (named.interactions, shelf.pair("u1", "b1").rating),
        (1, None)
    );
    let checkin = shelf.desk.file("checkin.json", b"{}");
    let said = Import::new(Format::Yelp, [checkin])
        .run(&shelf.desk.out())
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("checkin.json: check-ins and photos have no user"),
        "{said}"
    );
}

#[test]
fn steam_is_python_2_and_knows_users_by_name() {
    let reviews = br#"{u'hours': 0.3, u'early_access': False, u'text': u"It's \xe9asy \u2665 &amp; \"fun\"", u'product_id': u'725280', u'user_id': u'7656', u'username': u'freakfantom', u'products': 1702, u'date': u'2017-12-31', u'page': 0, u'page_order': 0}
{u'text': u'again', u'product_id': u'725280', u'username': u'freakfantom', u'date': u'2018-01-02'}
{u'text': u'nameless', u'product_id': u'328100', u'user_id': u'7657', u'date': u'2018-01-02'}
{u'text': u'nobody', u'product_id': u'328100', u'date': u'2018-01-02'}
{u'username': 'x', u'product_id': 1, u'text': open('/etc/passwd').read()}
"#;
    let games = br#"{u'publisher': u'Kotoshiro', u'genres': [u'Action', u'Design &amp; Illustration'], u'app_name': u'Lost Summoner Kitty', u'title': u'Lost Summoner Kitty', u'url': u'http://s', u'release_date': u'2018-01-04', u'reviews_url': u'http://r', u'price': u'Free to Play', u'early_access': False, u'id': u'725280', u'metascore': None}
{u'title': u'Ironbound', u'price': 4.99, u'id': u'328100', u'discount_price': u'$1.99'}
"#;
    let shelf = Shelf::of(
        Format::Steam,
        &[
            ("steam_reviews.json.gz", &gz(reviews)),
            ("steam_games.json", games),
        ],
    );
    let review = shelf.pair("freakfantom", "725280");
    assert_eq!(
        (review.review.as_deref(), review.timestamp),
        (Some("again"), Some(1_514_851_200)),
        "the later of two"
    );
    assert_eq!(
        shelf.pair("7657", "328100").review.as_deref(),
        Some("nameless")
    );
    let rejected = shelf.rejected();
    assert_eq!(
        rejected[0].record["text"], "It's éasy ♥ &amp; \"fun\"",
        "as it stood"
    );
    assert_eq!(rejected[1].reason, "missing user");
    assert!(
        rejected[2].reason.starts_with("unreadable Python literal"),
        "{}",
        rejected[2].reason
    );
    let item = shelf.item("725280");
    assert_eq!(item.title.as_deref(), Some("Lost Summoner Kitty"));
    assert_eq!(
        attributes(item.attributes),
        json!({"publisher": "Kotoshiro", "genres": ["Action", "Design & Illustration"], "release_date": "2018-01-04", "price": 0, "early_access": false})
    );
    assert_eq!(
        attributes(shelf.item("328100").attributes),
        json!({"price": 4.99, "discount_price": 1.99})
    );
}

#[test]
fn movielens_of_every_age() {
    let small = Shelf::of(
        Format::MovieLens,
        &[
            ("ratings.csv", b"userId,movieId,rating,timestamp\r\n1,1,4.0,964982703\r\n1,11,3.5,964982703\r\n"),
            ("movies.csv", "movieId,title,genres\r\n1,Toy Story (1995),Adventure|Animation\r\n11,\"American President, The (1995)\",(no genres listed)\r\n12,\"\"\"Great\"\" Babylon 5\",Sci-Fi\r\n".as_bytes()),
            ("tags.csv", b"userId,movieId,tag,timestamp\n1,1,pixar,1\n"),
        ],
    );
    assert_eq!(small.pair("1", "11").rating, Some(3.5));
    let item = small.item("11");
    assert_eq!(item.title.as_deref(), Some("American President, The"));
    assert_eq!(attributes(item.attributes), json!({"year": 1995}));
    assert_eq!(
        attributes(small.item("1").attributes),
        json!({"year": 1995, "genres": ["Adventure", "Animation"]})
    );
    let yearless = small.item("12");
    assert_eq!(yearless.title.as_deref(), Some("\"Great\" Babylon 5"));
    assert_eq!(
        attributes(yearless.attributes),
        json!({"genres": ["Sci-Fi"]})
    );

    let million = Shelf::of(
        Format::MovieLens,
        &[
            (
                "ratings.dat",
                b"1::1193::5::978300760\n1::53::4::978300760\n1::2\n",
            ),
            (
                "movies.dat",
                b"53::Lamerica \"(Am\xe9rica)\" (1994)::Drama|War\n1193::One: Two (1975)::Drama\n",
            ),
            ("users.dat", b"1::F::1::10::48067\n"),
        ],
    );
    assert_eq!(million.pair("1", "1193").timestamp, Some(978_300_760));
    assert_eq!(
        million.item("53").title.as_deref(),
        Some("Lamerica \"(América)\"")
    );
    assert_eq!(million.item("1193").title.as_deref(), Some("One: Two"));
    assert_eq!(
        attributes(million.user("1").attributes),
        json!({"gender": "F", "age": "under 18", "occupation": "K-12 student", "zip_code": "48067"})
    );
    assert_eq!(
        million.rejected()[0].reason,
        "2 fields where the header has 4"
    );

    let item = b"1|Mis\xe9rables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/x|0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n267|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n";
    let old = Shelf::of(
        Format::MovieLens,
        &[
            ("u.data", b"196\t1\t3\t881250949\n"),
            ("u.item", item),
            ("u.user", b"196|49|M|writer|55105\n"),
            ("u1.base", b"196\t1\t3\t881250949\n"),
        ],
    );
    assert_eq!(
        old.summary.read, 4,
        "the parts of u.data are not read again"
    );
    let film = old.item("1");
    assert_eq!(film.title.as_deref(), Some("Misérables, Les"));
    assert_eq!(
        attributes(film.attributes),
        json!({"release_date": "01-Jan-1995", "year": 1995, "genres": ["Animation", "Children's"]})
    );
    assert_eq!(
        attributes(old.item("267").attributes),
        json!({"genres": ["unknown"]})
    );
    assert_eq!(old.user("196").attributes["occupation"], "writer");

    let base = old.desk.file("u1.base", "1\t1\t3\t881250949\n");
    let test = old.desk.file("u1.test", "1\t2\t3\t881250949\n");
    let parts = Import::new(Format::MovieLens, [base, test])
        .run(&old.desk.out())
        .unwrap();
    assert_eq!((parts.splits.train, parts.splits.test), (1, 1));
}

#[test]
fn movielens_in_utf8_is_read_as_such() {
    let shelf = Shelf::of(
        Format::MovieLens,
        &[
            ("ratings.dat", b"1::53::5::978300760.75\n"),
            ("movies.dat", "53::Lamérica (1994)::Drama\n".as_bytes()),
        ],
    );
    assert_eq!(shelf.item("53").title.as_deref(), Some("Lamérica"));
    assert_eq!(shelf.pair("1", "53").timestamp, Some(978_300_760));
}

#[test]
fn recbole_has_types_in_its_header() {
    let shelf = Shelf::of(
        Format::RecBole,
        &[
            ("ml-100k.inter", b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n186\t302\t3.5\t891717742.0\n186\t\t3\t1\n"),
            ("ml-100k.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tvec:float_seq\tprice:float\n242\t\"Kolya\" Été\t1996\tComedy Drama\t0.5 1\t2.5\n".as_bytes()),
            ("ml-100k.user", b"user_id:token\tage:token\toccupation:token\n196\t49\twriter\n"),
            ("ml-100k.link", b"item_id:token\tentity_id:token\n242\tm.0\n"),
        ],
    );
    assert_eq!(shelf.pair("186", "302").rating, Some(3.5));
    assert_eq!(shelf.pair("186", "302").timestamp, Some(891_717_742));
    let item = shelf.item("242");
    assert_eq!(
        item.title.as_deref(),
        Some("\"Kolya\" Été"),
        "a title is its words"
    );
    assert_eq!(
        attributes(item.attributes),
        json!({"release_year": "1996", "class": ["Comedy", "Drama"], "vec": [0.5, 1], "price": 2.5})
    );
    assert_eq!(shelf.user("196").attributes["age"], "49");
    let rejected = shelf.rejected();
    assert_eq!(
        (rejected[0].reason.as_str(), &rejected[0].record["rating"]),
        ("missing item", &json!("3"))
    );

    for (header, said) in [
        (
            "user_id\titem_id:token\n",
            "the column \"user_id\" has no type",
        ),
        ("user_id:id\titem_id:token\n", "is of the type \"id\""),
    ] {
        let path = shelf.desk.file("x.inter", header);
        let error = Import::new(Format::RecBole, [path])
            .run(&shelf.desk.out())
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{error}");
    }
    let header = "user_id:token\titem_id:token\n";
    let parts = Shelf::of(
        Format::RecBole,
        &[
            ("a.part1.inter", format!("{header}1\t1\n").as_bytes()),
            ("a.part2.inter", format!("{header}1\t2\n").as_bytes()),
            ("a.part3.inter", format!("{header}1\t3\n").as_bytes()),
        ],
    );
    assert_eq!(parts.pair("1", "3").split, Some(Split::Test));
    assert_eq!(parts.pair("1", "1").split, Some(Split::Train));
}

#[test]
fn rlmrec_has_profiles_by_id_and_refuses_pickles() {
    let users = b"{\n  \"0\": {\n    \"profile\": \"Likes } and \\\"quotes\\\"\",\n    \"reasoning\": \"r\"\n  },\n  \"1\": {\"profile\": \"Reads\"}\n}\n";
    let shelf = Shelf::of(
        Format::RlmRec,
        &[
            ("usr_prf.json", users),
            (
                "itm_prf.json",
                br#"{"7": {"profile": "A book", "reasoning": "r"}, "8": "bare text"}"#,
            ),
            ("trn.csv", b"user,item\n0,7\n"),
            ("tst.csv", b"user,item\n1,8\n"),
        ],
    );
    let user = shelf.user("0");
    assert_eq!(user.profile.as_deref(), Some("Likes } and \"quotes\""));
    assert_eq!(attributes(user.attributes), json!({}));
    assert_eq!(shelf.item("7").profile.as_deref(), Some("A book"));
    assert_eq!(shelf.item("8").profile.as_deref(), Some("bare text"));
    assert_eq!(shelf.pair("1", "8").split, Some(Split::Test));

    let mapped = Shelf::of(
        Format::RlmRec,
        &[
            (
                "amazon_user.json",
                b"{\"uid\": 0, \"reviewerID\": \"A2X\"}\n",
            ),
            ("amazon_item.json", b"{\"iid\": 7, \"asin\": \"B00\"}\n"),
            ("trn.csv", b"user,item\n0,7\n"),
        ],
    );
    assert_eq!(
        attributes(mapped.user("0").attributes),
        json!({"reviewerID": "A2X"})
    );
    assert_eq!(
        attributes(mapped.item("7").attributes),
        json!({"asin": "B00"})
    );

    let both = Shelf::of(
        Format::RlmRec,
        &[
            (
                "amazon_item.json",
                b"{\"iid\": 7, \"asin\": \"B00\"}\n{\"iid\": 8, \"asin\": \"B01\"}\n",
            ),
            ("amazon_user.json", b"{\"uid\": 0, \"reviewerID\": \"A2X\"}\n"),
            (
                "itm_prf.json",
                br#"{"8": {"profile": "A lamp"}, "7": {"profile": "A book"}, "9": {"profile": "New"}}"#,
            ),
            ("usr_prf.json", br#"{"0": {"profile": "Reads"}}"#),
            ("trn.csv", b"user,item\n0,7\n"),
        ],
    );
    assert_eq!((both.summary.read, both.summary.rejected), (8, 0));
    assert_eq!(
        (both.summary.users, both.summary.items, both.summary.merged),
        (1, 3, 3)
    );
    let (user, item) = (both.user("0"), both.item("8"));
    assert_eq!(user.profile.as_deref(), Some("Reads"));
    assert_eq!(attributes(user.attributes), json!({"reviewerID": "A2X"}));
    assert_eq!(item.profile.as_deref(), Some("A lamp"));
    assert_eq!(attributes(item.attributes), json!({"asin": "B01"}));

    let pickle = shelf.desk.file("usr_prf.pkl", b"\x80\x04");
    let said = Import::new(Format::RlmRec, [pickle])
        .run(&shelf.desk.out())
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("usr_prf.pkl: a pickle can run any program") && said.contains("json.dump"),
        "{said}"
    );
}

#[test]
fn xrec_has_json_inside_texts() {
    let items = br#"{"iid": 7, "business summary": "{\n\"summarization\": \"Fans of\nnoir\",\n\"reasoning\": \"r\"}  \n "}
{"iid": 8, "completion": "{\"summarization\": \"Cooks\"}"}
{"iid": 9, "business summary": "{\"summarization\": "}
"#;
    let shelf = Shelf::of(
        Format::XRec,
        &[
            ("item_profile.json", items),
            (
                "user_profile.json",
                br#"{"uid": 1, "user summary": "{\"summarization\": \"Reads a lot\"}\n"}"#,
            ),
            (
                "explanation.json",
                br#"{"uid": 1, "iid": 7, "explanation": "The user would enjoy it. "}"#,
            ),
            ("total_trn.csv", b"user,item\n1,7\n"),
            ("total_val.csv", b"user,item\n1,8\n"),
            ("total.csv", b"user,item\n1,7\n1,8\n"),
        ],
    );
    assert_eq!(shelf.item("7").profile.as_deref(), Some("Fans of noir"));
    assert_eq!(shelf.item("8").profile.as_deref(), Some("Cooks"));
    assert_eq!(shelf.user("1").profile.as_deref(), Some("Reads a lot"));
    let rejected = shelf.rejected();
    assert_eq!(rejected.len(), 1);
    assert_eq!(
        (rejected[0].field.as_deref(), rejected[0].reason.as_str()),
        (Some("business summary"), "unreadable JSON in a text")
    );
    assert_eq!(shelf.pair("1", "8").split, Some(Split::Valid));
    assert_eq!(
        shelf.desk.out().references().unwrap()[0].explanation,
        "The user would enjoy it."
    );
    let titles = Shelf::of(
        Format::XRec,
        &[
            (
                "item_content.json",
                br#"{"iid": 7, "content": {"name": "Diner", "city": "Rome"}}"#,
            ),
            ("total_trn.csv", b"user,item\n1,7\n"),
        ],
    );
    assert_eq!(titles.item("7").title.as_deref(), Some("Diner"));
    assert_eq!(
        attributes(titles.item("7").attributes),
        json!({"city": "Rome"})
    );
}

#[test]
fn xrec_has_an_item_in_two_files() {
    let shelf = Shelf::of(
        Format::XRec,
        &[
            (
                "item_content.json",
                br#"{"iid": 7, "content": {"name": "Diner", "city": "Rome"}}
{"iid": 8, "content": {"name": "Bar", "city": "Oslo"}}
{"iid": 7, "content": {"name": "Diner", "city": "Rome"}}
{"iid": 8, "content": {"name": "Pub"}}
"#,
            ),
            (
                "item_profile.json",
                br#"{"iid": 8, "business summary": "{\"summarization\": \"Drinkers\"}"}
{"iid": 7, "business summary": "{\"summarization\": \"Night owls\"}", "city": "Paris"}
"#,
            ),
            ("total_trn.csv", b"user,item\n1,7\n"),
        ],
    );
    let summary = &shelf.summary;
    assert_eq!((summary.items, summary.merged, summary.rejected), (2, 2, 2));
    let (diner, bar) = (shelf.item("7"), shelf.item("8"));
    assert_eq!(
        (diner.title.as_deref(), diner.profile.as_deref()),
        (Some("Diner"), Some("Night owls"))
    );
    // The profiles are read first.
    assert_eq!(attributes(diner.attributes), json!({"city": "Paris"}));
    assert_eq!(
        (bar.title.as_deref(), bar.profile.as_deref()),
        (Some("Bar"), Some("Drinkers"))
    );

    let rejected = shelf.rejected();
    let [repeat, other] = &rejected[..] else {
        panic!("{rejected:?}")
    };
    assert!(repeat.reason.starts_with("duplicate of "), "{repeat:?}");
    assert!(repeat.reason.ends_with("item_content.json line 1"));
    assert!(other.reason.starts_with("contradicts "), "{other:?}");
    assert!(other.reason.ends_with("item_content.json line 2 in title"));
    assert_eq!(other.field.as_deref(), Some("title"));
    assert_eq!(
        other.record,
        json!({"iid": 8, "content": {"name": "Pub"}}),
        "whole, as it stands in its file"
    );
    let kinds: Vec<_> = summary
        .reasons
        .iter()
        .map(|reason| (&*reason.reason, reason.count))
        .collect();
    assert_eq!(kinds, [("duplicate", 1), ("contradicts another row", 1)]);

    let conflicts: Vec<Value> = jsonl::read_all(&shelf.desk.out().path("conflicts.jsonl")).unwrap();
    let raw = shelf.desk.folder.path().join("raw");
    assert_eq!(
        conflicts,
        [json!({
            "kind": "item", "id": "7", "field": "attributes.city",
            "kept": "Paris", "kept_file": raw.join("item_profile.json"), "kept_line": 2,
            "lost": "Rome", "file": raw.join("item_content.json"), "line": 1,
        })]
    );
    assert_eq!(summary.conflicts.count, 1);
    assert_eq!(summary.conflicts.fields[0].field, "attributes.city");
}

#[test]
fn titles_in_a_table_and_texts_in_lines_come_together() {
    let desk = Desk::new();
    let paths = [
        desk.file("items.csv", "item,title,year,price\n1,One,1995,12.90\n2,Two,,\n3,Three,2001,\n"),
        desk.file(
            "descriptions.jsonl",
            "{\"item_id\":3,\"description\":\"third\",\"year\":2001}\n{\"item_id\":1,\"description\":\"first\",\"year\":1995,\"price\":12.9}\n\
             {\"item_id\":4,\"description\":\"fourth\"}\n",
        ),
        desk.file("ratings.csv", "user,item\na,1\na,4\n"),
    ];
    for (format, paths) in [
        (Format::Csv, paths.to_vec()),
        (Format::Jsonl, paths.iter().rev().cloned().collect()),
    ] {
        let summary = Import::new(format, paths).run(&desk.out()).unwrap();
        assert!(balances(&summary), "{summary:?}");
        assert_eq!((summary.items, summary.merged, summary.rejected), (4, 2, 0));
        assert_eq!(summary.conflicts.count, 0, "1995 and \"1995\" are one year");
        let items = desk.out().items().unwrap();
        let known: std::collections::BTreeMap<_, _> = items
            .iter()
            .map(|item| {
                let texts = [&item.title, &item.description].map(Option::as_deref);
                (item.item.as_str(), texts)
            })
            .collect();
        assert_eq!(known["1"], [Some("One"), Some("first")]);
        assert_eq!(known["2"], [Some("Two"), None]);
        assert_eq!(known["3"], [Some("Three"), Some("third")]);
        assert_eq!(known["4"], [None, Some("fourth")]);
    }
}

#[test]
fn hostile_rows_are_refused_one_by_one() {
    let deep = "[".repeat(200_000);
    let mut rows = Vec::new();
    for row in [
        format!("{{'username': 'a', 'product_id': {deep}"),
        format!("{{\"username\": \"a\", \"product_id\": {deep}"),
        "{'username': 'a', 'product_id': 99999999999999999999999999}".to_owned(),
        "{'username': 'a', 'product_id': 1e999}".to_owned(),
        "{'username': 'a', 'product_id': 'b', 'date': 1e300}".to_owned(),
        "{'username': 'a\0', 'product_id': '\\0'}".to_owned(),
        "{'username': 'ok', 'product_id': 1}".to_owned(),
    ] {
        rows.extend_from_slice(row.as_bytes());
        rows.push(b'\n');
    }
    rows.extend_from_slice(b"{'username': '\xff', 'product_id': 1}\n");
    let shelf = Shelf::of(Format::Steam, &[("steam_reviews.json", &rows)]);
    let reasons: Vec<_> = shelf
        .rejected()
        .into_iter()
        .map(|row| (row.line, row.reason))
        .collect();
    let expected = [
        (1, "unreadable Python literal: nested too deep (byte "),
        (2, "unreadable JSON: recursion limit exceeded"),
        (
            3,
            "unreadable Python literal: a whole number beyond 64 bits (byte ",
        ),
        (4, "unreadable Python literal: a number that is not finite"),
        (5, "timestamp 1e+300 is not a time"),
        (8, "not UTF-8 from byte "),
    ];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    for ((line, reason), (at, start)) in reasons.iter().zip(expected) {
        assert!(
            *line == at && reason.starts_with(start),
            "line {line}: {reason}"
        );
    }
    assert_eq!(shelf.summary.taken, 2);
}
