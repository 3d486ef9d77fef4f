//! What people say to a voice assistant: intents with sentences, and the words that fill them.

use rand::Rng;
use rand::rngs::SmallRng;

/// What a speaker can want, in a few wordings.
pub(super) struct Intent {
    /// Before the dot: the domain.
    pub(super) name: &'static str,
    /// Language tag of the wordings.
    pub(super) locale: &'static str,
    /// Sentences; `{word}` is filled from [`words`].
    wordings: &'static [&'static str],
}

impl Intent {
    pub(super) fn domain(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(domain, _)| domain)
    }
}

const fn en(name: &'static str, wordings: &'static [&'static str]) -> Intent {
    Intent { name, locale: "en-GB", wordings }
}

const fn zh(name: &'static str, wordings: &'static [&'static str]) -> Intent {
    Intent { name, locale: "zh-CN", wordings }
}

/// Most frequent first: see [`Ranks`].
pub(super) const INTENTS: &[Intent] = &[
    en("music.play", &["play {artist}", "play some {genre} in the {room}", "put on {artist} please", "i want to hear {genre}"]),
    en("light.on", &["turn on the lights in the {room}", "lights on in the {room}", "switch the {room} light on"]),
    en(
        "weather.forecast",
        &["what is the weather in {city} {day}", "will it rain in {city} {day}", "how cold will it get {day}"],
    ),
    en("timer.set", &["set a timer for {number} minutes", "{number} minute timer", "start a {dish} timer for {number} minutes"]),
    en("light.off", &["turn off the lights in the {room}", "{room} lights off", "make it dark in the {room}"]),
    en("alarm.set", &["wake me at {time}", "set an alarm for {time} {day}", "i need to get up at {time} {day}"]),
    en("volume.up", &["louder", "turn it up in the {room}", "volume up by {number}"]),
    en("volume.down", &["quieter please", "turn it down in the {room}", "volume down by {number}"]),
    en("news.read", &["what is in the news {day}", "read me the news about {city}", "any news on {topic}"]),
    en("calendar.query", &["what do i have {day}", "when do i meet {person}", "am i free at {time} {day}"]),
    en("music.skip", &["next song", "skip this one", "i don't like {genre}, skip it"]),
    en("music.pause", &["pause", "stop the music in the {room}", "hold on, pause it"]),
    en(
        "reminder.set",
        &["remind me to call {person} {day}", "remind me at {time} to buy {food}", "don't let me forget the {food}"],
    ),
    zh("天气.查询", &["{地方}明天天气怎么样？", "今天{地方}会下雨吗？"]),
    en("heating.set", &["set the {room} to {number} degrees", "make the {room} warmer", "it is too cold in the {room}"]),
    en(
        "calendar.add",
        &["put lunch with {person} at {time} {day}", "add a meeting with {person} {day}", "book me for {topic} {day}"],
    ),
    en("call.start", &["call {person}", "ring {person} at work", "get me {person} on the phone"]),
    en("shopping.add", &["put {food} on the list", "we need {food} and {dish}", "add {number} {food} to my shopping list"]),
    en("qa.fact", &["how high is {city}", "who was {artist}", "tell me about {topic}", "how many people live in {city}"]),
    en("message.send", &["text {person} i am late", "send {person} a message", "tell {person} to bring {food}"]),
    en("radio.play", &["play the radio", "put on a {genre} station", "find me radio from {city}"]),
    en("joke.tell", &["tell me a joke", "make me laugh", "do you know one about {topic}"]),
    en("alarm.cancel", &["cancel my alarm", "no alarm {day}", "delete the {time} alarm"]),
    zh("音乐.播放", &["播放{歌手}的歌", "我想听{歌手}"]),
    en("recipe.find", &["how do i make {dish}", "find me a recipe for {dish}", "what can i cook with {food}"]),
    en("traffic.query", &["how is the traffic to {city}", "how long to {city}", "when must i leave to be in {city} at {time}"]),
    en("timer.query", &["how long is left on the timer", "when is the {dish} done", "what timers are running"]),
    en("podcast.play", &["play a podcast about {topic}", "go on with my podcast", "the newest podcast on {topic}"]),
    en("light.dim", &["dim the {room}", "set the {room} lights to {number} percent", "less light in the {room}"]),
    en("restaurant.find", &["find a place for {dish} in {city}", "somewhere to eat in {city} {day}", "who makes good {dish}"]),
    en(
        "restaurant.book",
        &["book a table for {number} at {time}", "reserve dinner in {city} {day}", "a table for {number} {day} please"],
    ),
    en("train.find", &["when is the next train to {city}", "trains to {city} {day} after {time}", "find a train from {city}"]),
    en("taxi.book", &["get me a taxi at {time}", "i need a cab to {city}", "order a car for {number} people"]),
    en("email.read", &["any new mail", "read the mail from {person}", "did {person} write"]),
    en("email.send", &["write {person} a mail about {topic}", "answer {person}", "mail {person} that i agree"]),
    en("clock.query", &["what time is it", "what time is it in {city}", "which day is it"]),
    en("plug.on", &["switch on the {device}", "turn the {device} on in the {room}", "start the {device}"]),
    en("plug.off", &["switch off the {device}", "turn the {device} off", "stop the {device}"]),
    en("cleaner.start", &["vacuum the {room}", "clean the {room} at {time}", "start the cleaner"]),
    en("translate.phrase", &["how do you say {food} in french", "translate {topic} to german", "what is {dish} in spanish"]),
    en(
        "maths.compute",
        &["what is {number} times {number}", "how much is {number} percent of {number}", "{number} plus {number}"],
    ),
    zh("餐馆.推荐", &["帮我找一家{地方}附近的餐馆", "{地方}有什么好吃的？"]),
    en("hotel.find", &["find a hotel in {city} {day}", "a room for {number} nights in {city}", "a cheap hotel in {city}"]),
    en("flight.find", &["flights to {city} {day}", "when can i fly to {city}", "the cheapest flight from {city}"]),
    en("event.find", &["what is on in {city} {day}", "is there {genre} in {city}", "find me a concert of {artist}"]),
    en("event.book", &["two tickets for {artist}", "buy {number} tickets {day}", "get me into the {genre} night"]),
    en("movie.find", &["what is on at the cinema {day}", "films about {topic}", "is there a good film at {time}"]),
    en("stock.query", &["how is the market {day}", "what are the shares of {topic} at", "did the market fall"]),
    en("sport.query", &["did {city} win", "who plays {day}", "what is the score in {city}"]),
    en("book.read", &["read my book", "go on reading", "read the chapter on {topic}"]),
    en("game.start", &["let us play a quiz about {topic}", "start a game", "play twenty questions"]),
    en("lock.close", &["lock the front door", "is the {room} window closed", "lock up at {time}"]),
    en("blind.move", &["close the blinds in the {room}", "blinds up at {time}", "open the {room} blinds"]),
    en("bank.balance", &["how much money do i have", "what did i spend on {food}", "is my salary in"]),
    en("bank.transfer", &["send {person} {number} pounds", "pay {person} back", "transfer {number} to {person}"]),
    en("delivery.track", &["where is my parcel", "when does the {device} arrive", "has the {food} been sent"]),
    en("doctor.book", &["a doctor's appointment {day}", "can i see a dentist {day} at {time}", "book a check-up in {city}"]),
    en("contact.find", &["what is {person}'s number", "where does {person} live", "when is {person}'s birthday"]),
    en("smalltalk.greet", &["hello", "good morning", "how are you {day}"]),
    en("smalltalk.thank", &["thank you", "thanks, that is all", "great, thanks"]),
    en("assistant.repeat", &["say that again", "what did you say", "sorry, once more please"]),
    en("assistant.stop", &["stop", "never mind", "forget it"]),
];

fn words(slot: &str) -> &'static [&'static str] {
    match slot {
        "city" => &["london", "paris", "leeds", "cardiff", "san jose", "new york", "oslo", "zürich", "madrid", "kyoto", "perth"],
        "day" => &["today", "tomorrow", "tonight", "on friday", "on sunday", "next week", "this weekend", "on the third"],
        "time" => &["six", "half past seven", "eight thirty", "noon", "quarter to nine", "5 pm", "ten", "a quarter past four"],
        "number" => &["two", "three", "five", "ten", "twelve", "fifteen", "twenty", "twenty five", "forty", "ninety"],
        "room" => &["kitchen", "bedroom", "living room", "hall", "bathroom", "garage", "office", "garden"],
        "person" => &["anna", "josé", "mum", "doctor lee", "sam", "priya", "mister brown", "zoë", "my boss", "li wei"],
        "artist" => &["queen", "björk", "miles davis", "nina simone", "abba", "bach", "the beatles", "sigur rós", "adele"],
        "genre" => &["jazz", "rock", "techno", "folk", "opera", "hip hop", "blues", "film music", "salsa"],
        "topic" => &["space", "football", "elections", "robots", "gardening", "the sea", "history", "bees", "chess"],
        "food" => &["milk", "bread", "apples", "rice", "eggs", "coffee", "tomatoes", "olive oil", "butter"],
        "dish" => &["pasta", "curry", "ramen", "pancakes", "lasagne", "crème brûlée", "soup", "dumplings", "pizza"],
        "device" => &["kettle", "fan", "coffee machine", "heater", "washing machine", "television", "lamp", "printer"],
        "地方" => &["北京", "上海", "故宫", "成都", "颐和园", "三里屯"],
        "歌手" => &["周杰伦", "王菲", "邓丽君", "李宗盛"],
        _ => &["it"],
    }
}

/// Puts a wording of the intent into `text` and the slot values that it names into `slots`, a slot once, its latest value.
pub(super) fn utter(intent: &Intent, rng: &mut SmallRng, text: &mut String, slots: &mut Vec<(&'static str, &'static str)>) {
    text.clear();
    let mut rest = intent.wordings[rng.random_range(0..intent.wordings.len())];
    while let Some((before, (slot, after))) =
        rest.split_once('{').and_then(|(before, tail)| Some((before, tail.split_once('}')?)))
    {
        let candidates = words(slot);
        let value = candidates[rng.random_range(0..candidates.len())];
        text.push_str(before);
        text.push_str(value);
        match slots.iter_mut().find(|(known, _)| *known == slot) {
            Some(known) => known.1 = value,
            None => slots.push((slot, value)),
        }
        rest = after;
    }
    text.push_str(rest);
}

/// Draws ranks with the skew of everyday use: rank r comes up in proportion to 1 / (r + 1) (Zipf's law).
pub(super) struct Ranks(Vec<u8>);

impl Ranks {
    /// Ranks below `count`, which is at most 256.
    pub(super) fn new(count: usize) -> Self {
        // A table of outcomes makes a draw one load; 4096 slots leave the rarest of 60 ranks more than ten.
        const SLOTS: usize = 4096;
        let total: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
        let mut slots = Vec::with_capacity(SLOTS);
        let mut sum = 0.0;
        for rank in 0..count {
            sum += 1.0 / (rank + 1) as f64 / total;
            let until = if rank + 1 == count { SLOTS } else { (sum * SLOTS as f64) as usize };
            slots.resize(until.max(slots.len()), rank as u8);
        }
        Self(slots)
    }

    pub(super) fn draw(&self, rng: &mut SmallRng) -> usize {
        usize::from(self.0[rng.random_range(0..self.0.len())])
    }
}
