"""The story templates: data only, a small language of slots and choices.

`{p.name}` is filled from the drawn slots (see `corpus.draw_slots`), `[this|that]` keeps one choice, and an empty choice
leaves the phrase out; articles and capitals are put right afterwards.  This module must never draw at random.
"""

from __future__ import annotations

_TEXT = """
# Lost and found

6 {p.name} the {p.trade} [could not find|had lost] {p.his} {thing}. {p.he} looked {l.where}, then {s.where}. [At
  last|In the end], the {a.name} {a.does}, and there lay the {thing}! [{p.name} laughed and put it in {p.his}
  pocket.|{p.he} gave the {a.name} some {a.food}.|]

4 {q.name} found a {thing} {l.where}. "[Whose is this|Who has lost a {thing}]?" asked {q.name}. "[It is mine|That is
  my {thing}]," said {p.name}. "I lost it on {day0.name}." [So {q.name} gave the {thing} back to {p.name}.|{p.name}
  thanked {q.name} and went home.]

4 Where is the {thing}? {p.name} put it {s.where} [on {day0.name}|this morning]. Then the {a.name} took it and
  {a.does}. [Now the {thing} is {l.where}.|{p.name} is still looking for it.]

# Once upon a time

7 Once upon a time there was a {b.name} who lived {b.home}. The {b.name} was [very|so] {b.trait}, and every day it
  {b.does}. One day a {c.name} came by. ["Will you play with me?" asked the {c.name}.|"I am hungry," said the
  {c.name}.] ["Yes," said the {b.name}, and they were friends ever after.|The {b.name} shared its {b.food} with the
  {c.name}.]

5 Once upon a time a {p.trade} named {p.name} lived {s.where}. {p.he} had a {a.name} and a {t.name}, and nothing else.
  [Every morning {p.he} {t.done}, and the {a.name} {a.does}.|People came from far away to buy {p.his} {p.makes}.]
  [They were poor but happy.|One night the {a.name} found a {thing}, and they were never poor again.|]

4 Long ago, a {p.trade} and a {c.name} met {l.where}. "I have no {c.food}," said the {c.name}. The {p.trade} opened a
  bag and gave the {c.name} some {c.food}. [From that day the {c.name} followed the {p.trade} everywhere.|"Thank you,"
  said the {c.name}.]

# Portraits

6 {p.name} is a {p.trade}. {p.he} makes {p.makes} and works {s.where}. [{p.his} {a.name} is very {a.trait}.|In the
  evening {p.he} cooks {d.name} and sings.|Everyone in the village likes {p.him}.] [{p.he} never goes out without
  {p.his} {t.name}.|]

4 {p.name} the {p.trade} has a {a.name} [called|named] {pet}. {pet} eats {a.food} and sleeps {a.home}. [When {p.name}
  comes home, {pet} says {a.sound}.|Last {day0.name}, {pet} {a.does}.] [{p.name} loves {pet} very much.|]

4 The {p.trade} lives {s.where}. {p.his} name is {p.name}, and {p.he} has a {a.name}. [The {a.name} is {a.trait}, but
  {p.name} is patient.|{p.name} and the {a.name} go everywhere together.]

# Days and seasons

6 On {day0.name}, {p.name} {day0.work}. On {day1.name}, {p.he} {day1.work}. [On {day2.name}, {p.he} {day2.work}.
  |][Then {p.name} was tired and slept until noon.|It was a good week for a {p.trade}.|On {day3.name}, {p.name}
  {day3.work}.]

5 It was a {w.sky} [day|morning] in {w.name}. [In the village,|All around,] {w.weather}. {p.name} {w.work} while the
  {a.name} {a.does}. ["I like {w.season} best," said {p.name}.|In the evening they ate {d.name} by the fire.|]

3 In {w.name}, {w.weather}. The people of the village {w.work}, and the {b.plural} stayed {b.home}. [That is how
  {w.season} goes.|Everyone waited for [better weather|the feast].]

3 [Question: What did people do in {w.name}? Answer: In {w.name} {w.weather}, so they {w.work}.|Question: Which season
  is {w.name} in? Answer: {w.name} is in {w.season}.]

3 Question: What day comes after {day0.name}? Answer: After {day0.name} comes {day1.name}.

4 The rain began on {day0.name}. By {day1.name} the water had reached the {l.name}. {p.name} carried the {a.name} up
  the hill, and {q.name} brought {p.his} {thing}. On {day2.name} the sun came out, and [the {a.name} {a.does}|they all
  went home].

# Work and tools

5 To {t.task}, {p.name} [needed|wanted] a {t.name}. {p.he} found the {t.name} {t.kept} and {t.done}. [When the work
  was done, {p.he} put the {t.name} back {t.kept}.|{q.name} came to help, and they finished before dark.]

5 "May I borrow your {t.name}?" asked {q.name}. "I must {t.task}." "Of course," said {p.name}. "It is {t.kept}." [In
  the evening {q.name} brought the {t.name} back with some {d.name}.|So {q.name} took the {t.name} and {t.done}.]

3 Question: What is a {t.name} for? Answer: a {t.name} is used to {t.task}. [You can find it {t.kept}.|]

4 The old {t.name} was broken. {p.name} took it to {q.name} the {q.trade}. "Come back on {day0.name}," said {q.name}.
  On {day0.name} the {t.name} was as good as new, and {p.name} {t.done}[ before noon| with joy|].

# Counting

9 {p.name} had {n} {b.plural}. {p.he} bought {m} more at the market. Now {p.name} has {total} {b.plural}. [They sleep
  {b.home}.|They eat {b.food} all day.|]

6 There were {total} {k.name} in the basket. {p.name} ate {m}, so {n} were left. [{q.name} made {k.dish} with the
  rest.|{p.he} gave the rest to the {a.name}.|]

4 [Question: How many {b.plural} are {n} {b.plural} and {m} {b.plural}? Answer: {n} and {m} make {total}.|Question:
  What comes after {n}? Answer: After {n} comes {next}.|"Count with me," said {p.name}. "{n}, {next}, {next2},
  {next3}! Well done."]

# Animals and what is true of them

9 Question: [What does a {b.name} eat? Answer: a {b.name} eats {b.food}.|Where does a {b.name} live? Answer: a
  {b.name} lives {b.home}.|What does a {b.name} say? Answer: a {b.name} says {b.sound}.|What is a young {b.name}
  called? Answer: A young {b.name} is called a {b.young}.|What does a {g.name} give? Answer: a {g.name} gives
  {g.gives}.]

4 The {b.name} says {b.sound}. The {c.name} says {c.sound}. [The {a.name} says {a.sound}. |]What a noise {l.where}!

4 The {b.name} is {b.trait}. It lives {b.home} and eats {b.food}. [Its young one is called a {b.young}.|You can hear
  it say {b.sound}.|{p.name} the {p.trade} gives it food each day.]

3 I live {b.home} and I eat {b.food}. I say {b.sound}. [My little one is a {b.young}. |]What am I? I am a {b.name}.

4 The {big.name} is bigger than the {mid.name}, and the {mid.name} is bigger than the {small.name}. So the {big.name}
  is bigger than the {small.name}. [But the {small.name} is more {small.trait}.|]

3 A little {b.young} was lost {l.where}. "{b.sound}, {b.sound}!" it cried. [The mother {b.name} heard it and came
  running.|{p.name} carried the {b.young} back to the old {b.name}.] [That night they all slept {b.home}.|]

5 The {b.name} and the {c.name} had a race. The {c.name} ran fast, but the {b.name} {b.does}. ["I won," said the
  {c.name}.|{p.name} and {q.name} watched from the hill.] ["Let us eat some {b.food}," said the {b.name}.|Then they
  went home and slept.]

# Speech

6 "Where are you going?" asked the {b.name}. "To the {l.name}," said the {c.name}. "I will find {c.food} there." ["May
  I come too?" asked the {b.name}. "Yes, come," said the {c.name}.|"Bring me some {b.food}," said the {b.name}.]

5 "Good morning, {p.name}," said {q.name}. "How is your {a.name}?" "[Very well|Not so well], thank you," said
  {p.name}. "[Yesterday it {a.does}|It eats {a.food} all day]." [Then {q.name} went on to the {l.name}.|]

4 "What are you making?" {q.name} asked the {p.trade}. "{p.makes}," said {p.name}. "I make {p.makes} every
  {day0.name}." [{q.name} bought some and went home.|"How lovely," said {q.name}.]

3 Dear {p.name}, today I {day0.work} and saw your {a.name} {l.where}. [It {a.does}.|It was very {a.trait}.] Please
  come on {day1.name} and bring your {thing}. Your friend, {q.name}.

# Market, kitchen, field

5 On {day0.name}, {p.name} walked to the market with a basket of {k.name}. {p.he} sold the {k.name} to {q.name} and
  bought a {thing}. [On the way home, {p.he} met a {b.name} {l.where}.|"What a fine {thing}," said {q.name}.]
  [{p.name} was happy.|]

5 To make {d.name}, you need {d.first} and {d.second}. First, {d.steps[0]}. Then, {d.steps[1]}. Finally, {d.steps[2]}.
  [{p.name} makes the best {d.name} in the village.|Eat it while it is warm.|]

4 In the {k.field} grow the {k.name}. They are {k.colour} and ripe in {k.picked}. [{p.name} makes {k.dish} from
  them.|The {b.plural} would like to eat them too.]

4 {p.name} cooked {d.name} for {q.name}. It was made of {d.first} and {d.second}. ["It needs more {d.second}," said
  {q.name}.|"This is the best {d.name} in the village," said {q.name}.] [The {a.name} ate what was left.|]

3 {p.name} planted {k.name} in the {k.field}. First came the leaves, then the flowers. In {k.picked}, {p.name} picked
  {total} baskets of {k.name} and made {k.dish}[ for {q.name}| for everyone].

# Places and journeys

5 [In the old days, |]the {l.name} was a quiet place. There you could see {l.has}. a {b.name} lived there, and at
  night it {b.does}. [Only {p.name} the {p.trade} knew about it.|Nobody else came there.]

4 {p.name} walked from the {l.name} to the {s.name}. On the way {p.he} met a {b.name}, and a {c.name}, and {q.name}
  the {q.trade}. [The {b.name} wanted {b.food}. The {c.name} wanted {c.food}. {q.name} only wanted to talk.|They all
  went on together.]

4 At night, the village sleeps. The {b.name} is {b.home}, and {p.name} dreams of {p.makes}. [Only the {c.name} is
  awake {l.where}.|A lantern shines {l.where}.] [Good night, {p.name}.|]

3 The sun came up over the {l.name}. The {b.name} said {b.sound} and {b.does}. {p.name} opened the door and [called
  the {a.name}|looked for {p.his} {thing}]. A new day had begun.

3 {p.name} was afraid of the {b.name}. "It says {b.sound}," {p.he} said. "Do not be afraid," said {q.name}. "Give it
  some {b.food}." So {p.name} gave it {b.food}, and [the {b.name} {b.does}|after that they were friends].

# Openers that a stranger might try

3 My name is {p.name} and I am a {p.trade}. I live {s.where} with my {a.name}. [Every {day0.name} I make {p.makes}.|In
  the evening I cook {d.name}.] [The {a.name} is very {a.trait}, and I like it.|]

3 "Hello," said the {b.name}. "Who are you?" "I am a {c.name}," said the {c.name}. "I live {c.home}." [So they went to
  the {l.name} together.|"Then you must like {c.food}," said the {b.name}.]

4 Tell me a story about a {b.name}. Once there was a {b.name} that {b.does}. [Then a {c.name} came and said
  {c.sound}.|One day it found a {thing} {l.where}.] [The {b.name} went home and ate {b.food}.|{p.name} laughed and
  gave it some {b.food}.]

2 Tell me about {p.name}. {p.name} is a {p.trade} who works {s.where}. {p.he} has a {a.name} and likes {d.name}.

3 The {p.trade} woke up early on {day0.name}. {p.he} fed the {a.name} some {a.food} and {day0.work}. [Then {q.name}
  came with a {thing}.|By noon {p.he} was tired and hungry.] "[It is a fine day|I would like some {d.name}]," said the
  {p.trade}.

2 [Hello|Good evening], {p.name}! How are you today? I am well, thank you. [My {a.name} {a.does}, and I {day0.work}.|I
  am going to the {l.name} with {q.name}.]

# Other scripts

1 In {f.language}, the word for {f.english} is {f.word}. {f.sentence} This means: {f.meaning}

1 {p.name} wrote: {emoji} says {e.sound}, {emoji} eats {e.food}! [{q.name} wrote back: I like {e.plural} too.
  {emoji}|]
"""


def _parse(text: str) -> tuple[tuple[int, str], ...]:
    """Return (weight, template) for each paragraph that is not a heading."""
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    split = (paragraph.split(" ", 1) for paragraph in paragraphs if not paragraph.startswith("#"))
    return tuple((int(weight), template) for weight, template in split)


TALES = _parse(_TEXT)
"""How often each template is drawn, and the template."""
