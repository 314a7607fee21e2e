"""The farm's people, animals, tools, crops and calendar.

Owns the facts that every story must agree with: who keeps which animal, what an animal eats, what the weather
does in a month.  Must never draw at random: choosing is the corpus's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Place:
    name: str
    where: str  # "in the barn"
    has: str  # what one sees there


@dataclass(frozen=True)
class Animal:
    name: str
    plural: str
    sound: str
    food: str
    home: str  # "in a hive"
    young: str
    gives: str
    trait: str
    does: str  # past tense, what it likes doing
    size: int  # rank among the animals, no two alike


@dataclass(frozen=True)
class Tool:
    name: str
    task: str  # "cut the grass"
    done: str  # "cut the grass", past tense
    kept: str  # where it hangs


@dataclass(frozen=True)
class Crop:
    name: str  # plural
    field: str
    sown: str  # season
    picked: str  # season
    dish: str
    colour: str


@dataclass(frozen=True)
class Dish:
    name: str
    first: str
    second: str
    steps: tuple[str, str, str]


@dataclass(frozen=True)
class Month:
    name: str
    season: str
    weather: str  # "snow fell"
    sky: str  # adjective of the day
    work: str  # past tense


@dataclass(frozen=True)
class Day:
    name: str
    work: str  # past tense


@dataclass(frozen=True)
class Person:
    name: str
    is_woman: bool
    trade: str
    makes: str
    pet: Animal
    tool: Tool
    place: Place
    dish: Dish
    thing: str

    @property
    def he(self) -> str:
        return "she" if self.is_woman else "he"

    @property
    def his(self) -> str:
        return "her" if self.is_woman else "his"

    @property
    def him(self) -> str:
        return "her" if self.is_woman else "him"


@dataclass(frozen=True)
class Foreign:
    english: str
    language: str
    word: str
    sentence: str  # in that language
    meaning: str  # in English


K = TypeVar("K", Place, Animal, Tool, Dish)


def _named(*kinds: K) -> dict[str, K]:
    return {kind.name: kind for kind in kinds}


PLACES = _named(
    Place("barn", "in the barn", "warm straw"),
    Place("mill", "behind the mill", "a great wooden wheel"),
    Place("pond", "by the pond", "tall green reeds"),
    Place("orchard", "in the orchard", "rows of apple trees"),
    Place("garden", "in the garden", "beans and roses"),
    Place("kitchen", "in the kitchen", "a black iron stove"),
    Place("bridge", "under the bridge", "cold clear water"),
    Place("hill", "on the hill", "wind and long grass"),
    Place("market", "at the market", "noisy little shops"),
    Place("forest", "in the forest", "dark old trees"),
    Place("well", "beside the well", "a bucket on a rope"),
    Place("shed", "in the shed", "ropes and rusty nails"),
    Place("river", "near the river", "smooth white stones"),
    Place("meadow", "in the meadow", "bees and yellow flowers"),
    Place("stable", "in the stable", "saddles and sweet hay"),
    Place("school", "behind the school", "a small brass bell"),
)

ANIMALS = _named(
    Animal("bee", "bees", "buzz", "nectar", "in a hive", "grub", "honey", "busy", "danced over the flowers", 1),
    Animal("mouse", "mice", "squeak", "crumbs", "in the wall", "pup", "nothing", "shy", "hid behind the stove", 2),
    Animal("duck", "ducks", "quack", "weeds", "on the pond", "duckling", "eggs", "cheerful", "swam in a circle", 3),
    Animal("hen", "hens", "cluck", "corn", "in a coop", "chick", "eggs", "proud", "scratched in the dust", 4),
    Animal("owl", "owls", "hoot", "mice", "in a tower", "owlet", "nothing", "wise", "watched the moon", 5),
    Animal("cat", "cats", "meow", "fish", "in the kitchen", "kitten", "nothing", "lazy", "slept in the sun", 6),
    Animal("rabbit", "rabbits", "squeak", "carrots", "in a burrow", "kit", "nothing", "quick", "jumped the ditch", 7),
    Animal("goose", "geese", "honk", "grass", "in the yard", "gosling", "feathers", "bossy", "chased the visitors", 8),
    Animal("fox", "foxes", "yap", "berries", "in a den", "cub", "nothing", "clever", "crept along the hedge", 9),
    Animal("dog", "dogs", "woof", "bones", "in a kennel", "puppy", "nothing", "loyal", "guarded the gate", 10),
    Animal("sheep", "sheep", "baa", "clover", "in a fold", "lamb", "wool", "gentle", "followed the others", 11),
    Animal("goat", "goats", "bleat", "leaves", "in a shed", "kid", "cheese", "stubborn", "climbed the wall", 12),
    Animal("pig", "pigs", "oink", "apples", "in a sty", "piglet", "nothing", "muddy", "rolled in the mud", 13),
    Animal("donkey", "donkeys", "bray", "thistles", "in a stable", "foal", "nothing", "patient", "pulled the cart", 14),
    Animal("cow", "cows", "moo", "grass", "in a barn", "calf", "milk", "calm", "chewed all day", 15),
    Animal("horse", "horses", "neigh", "oats", "in a stable", "foal", "nothing", "strong", "ran across the field", 16),
)

TOOLS = _named(
    Tool("hammer", "mend the fence", "mended the fence", "on a nail"),
    Tool("scythe", "cut the grass", "cut the grass", "on the wall"),
    Tool("axe", "chop the wood", "chopped the wood", "by the door"),
    Tool("spade", "dig the garden", "dug the garden", "in the corner"),
    Tool("needle", "sew the shirt", "sewed the shirt", "in a box"),
    Tool("ladder", "reach the roof", "reached the roof", "against the wall"),
    Tool("bucket", "carry the water", "carried the water", "beside the well"),
    Tool("broom", "sweep the floor", "swept the floor", "behind the door"),
    Tool("lantern", "light the path", "lit the path", "on a hook"),
    Tool("rake", "gather the hay", "gathered the hay", "in the corner"),
    Tool("sieve", "sift the flour", "sifted the flour", "on a shelf"),
    Tool("net", "catch the fish", "caught the fish", "in the boat"),
    Tool("rope", "tie the boat", "tied the boat", "on a hook"),
    Tool("saw", "cut the planks", "cut the planks", "on a nail"),
    Tool("brush", "paint the door", "painted the door", "in a jar"),
    Tool("basket", "pick the plums", "picked the plums", "under the table"),
)

CROPS = (
    Crop("beans", "garden", "spring", "summer", "soup", "green"),
    Crop("pears", "north orchard", "winter", "autumn", "cake", "yellow"),
    Crop("pumpkins", "south field", "spring", "autumn", "pie", "orange"),
    Crop("potatoes", "long field", "spring", "autumn", "stew", "brown"),
    Crop("carrots", "garden", "spring", "autumn", "cake", "orange"),
    Crop("onions", "back garden", "spring", "summer", "soup", "white"),
    Crop("berries", "hedge", "winter", "summer", "jam", "red"),
    Crop("turnips", "east field", "spring", "autumn", "stew", "white"),
    Crop("plums", "orchard", "winter", "autumn", "jam", "purple"),
    Crop("peas", "small field", "spring", "summer", "salad", "green"),
)

DISHES = _named(
    Dish("bread", "flour", "water", ("mix the flour and water", "let the dough rest", "bake it for an hour")),
    Dish("soup", "onions", "beans", ("chop the onions", "boil the beans", "stir until it is thick")),
    Dish("pie", "apples", "butter", ("slice the apples", "roll out the dough", "bake it until it is golden")),
    Dish("jam", "berries", "sugar", ("wash the berries", "add the sugar", "boil it in a big pot")),
    Dish("stew", "potatoes", "carrots", ("peel the potatoes", "add the carrots", "cook it all afternoon")),
    Dish("cheese", "milk", "salt", ("warm the milk", "add the salt", "leave it in a cool room")),
    Dish("porridge", "oats", "milk", ("pour the milk", "add the oats", "stir it slowly")),
    Dish("cake", "eggs", "honey", ("beat the eggs", "add the honey", "bake it in a round tin")),
)

MONTHS = (
    Month("January", "winter", "snow fell", "frozen", "mended the harness"),
    Month("February", "winter", "ice covered the pond", "bitter", "chopped wood"),
    Month("March", "spring", "the wind blew", "windy", "sowed the first seeds"),
    Month("April", "spring", "rain came and went", "wet", "counted the lambs"),
    Month("May", "spring", "the trees bloomed", "mild", "planted the garden"),
    Month("June", "summer", "the sun shone", "bright", "cut the hay"),
    Month("July", "summer", "the heat grew", "hot", "carried water to the field"),
    Month("August", "summer", "thunder rolled", "heavy", "brought in the wheat"),
    Month("September", "autumn", "the leaves turned red", "golden", "picked apples"),
    Month("October", "autumn", "fog hid the hill", "foggy", "pressed the cider"),
    Month("November", "autumn", "cold rain fell", "grey", "stacked the firewood"),
    Month("December", "winter", "frost covered the windows", "cold", "told stories by the fire"),
)

DAYS = (
    Day("Monday", "washed the shirts"),
    Day("Tuesday", "baked the bread"),
    Day("Wednesday", "mended the fence"),
    Day("Thursday", "cleaned the barn"),
    Day("Friday", "went to the market"),
    Day("Saturday", "picked apples"),
    Day("Sunday", "rested by the fire"),
)

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen"),
)

THINGS = (
    *("silver key", "red scarf", "blue hat", "little bell", "old map", "wooden spoon", "gold ring", "green coat"),
    *("glass jar", "brass button", "small drum", "leather boot", "long letter", "woollen sock", "paper kite"),
    "broken clock",
)


def _person(row: str, thing: str) -> Person:
    name, he, trade, makes, pet, tool, place, dish = row.split(",")
    return Person(name, he == "she", trade, makes, ANIMALS[pet], TOOLS[tool], PLACES[place], DISHES[dish], thing)


PEOPLE = tuple(
    map(
        _person,
        (
            "Ada,she,baker,loaves,cat,sieve,kitchen,bread",
            "Ben,he,miller,flour,donkey,broom,mill,porridge",
            "Clara,she,weaver,blankets,sheep,needle,meadow,pie",
            "Daniel,he,carpenter,tables,dog,saw,shed,stew",
            "Emma,she,farmer,butter,cow,bucket,barn,cheese",
            "Felix,he,fisherman,nets,duck,net,river,soup",
            "Grace,she,teacher,songs,owl,brush,school,cake",
            "Henry,he,smith,horseshoes,horse,hammer,stable,stew",
            "Iris,she,gardener,garlands,rabbit,spade,garden,soup",
            "Jonas,he,shepherd,whistles,dog,lantern,hill,cheese",
            "Kate,she,beekeeper,candles,bee,brush,meadow,cake",
            "Leo,he,painter,pictures,cat,ladder,bridge,jam",
            "Maria,she,doctor,medicine,goat,lantern,market,porridge",
            "Noah,he,woodcutter,chairs,fox,axe,forest,stew",
            "Olga,she,cook,dumplings,pig,basket,kitchen,pie",
            "Peter,he,ferryman,boats,goose,rope,river,bread",
            "Rosa,she,tailor,coats,mouse,needle,market,jam",
            "Sam,he,stable boy,saddles,horse,rake,stable,porridge",
            "Tara,she,potter,bowls,hen,bucket,well,soup",
            "Victor,he,mower,ropes,goat,scythe,hill,bread",
            "Wendy,she,shopkeeper,sweets,mouse,broom,market,jam",
            "Yusuf,he,orchard keeper,cider,bee,basket,orchard,pie",
            "Nina,she,goatherd,cheese,goat,rope,hill,cheese",
            "Omar,he,cart driver,wheels,donkey,hammer,bridge,cake",
        ),
        THINGS * 2,
    )
)

FOREIGN = (
    Foreign("cow", "French", "la vache", "La vache mange de l'herbe.", "The cow eats grass."),
    Foreign("cat", "French", "le chat", "Le chat dort près du feu.", "The cat sleeps near the fire."),
    Foreign("goat", "French", "la chèvre", "La chèvre est têtue.", "The goat is stubborn."),
    Foreign("dog", "German", "der Hund", "Der Hund schläft vor der Tür.", "The dog sleeps at the door."),
    Foreign("cow", "German", "die Kuh", "Die Kühe stehen im Stall.", "The cows stand in the barn."),
    Foreign("duck", "Spanish", "el pato", "El pato nada en el agua.", "The duck swims in the water."),
    Foreign("morning", "Spanish", "la mañana", "La mañana está fría.", "The morning is cold."),
    Foreign("cow", "Japanese", "牛", "牛は草を食べます。", "The cow eats grass."),
    Foreign("cat", "Japanese", "猫", "猫は魚を食べます。", "The cat eats fish."),
    Foreign("rain", "Chinese", "雨", "今天下雨。", "It is raining today."),
    Foreign("horse", "Chinese", "马", "马在山上。", "The horse is on the hill."),
    Foreign("dog", "Russian", "собака", "Собака спит у двери.", "The dog sleeps at the door."),
    Foreign("bread", "Russian", "хлеб", "Хлеб на столе.", "The bread is on the table."),
    Foreign("water", "Arabic", "ماء", "الماء بارد.", "The water is cold."),
    Foreign("milk", "Hindi", "दूध", "दूध गरम है।", "The milk is warm."),
    Foreign("sheep", "Greek", "το πρόβατο", "Το πρόβατο είναι λευκό.", "The sheep is white."),
)

EMOJI = dict(zip(ANIMALS, "🐝🐭🦆🐔🦉🐱🐰🪿🦊🐶🐑🐐🐷🫏🐄🐴", strict=True))
