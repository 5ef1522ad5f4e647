"""Words of the food city: cuisines, dishes, brands and the wordings of every scene value."""


def words_of(text: str) -> tuple[str, ...]:
    """The words of a list written as a line of text."""
    return tuple(text.split())


FAMILIES: dict[str, dict[str, str]] = {
    "east asian": {
        "cantonese": "dumplings wontons congee-bowl char-siu steamed-buns lo-mein clay-pot-rice",
        "sichuan": "mapo-tofu dan-dan-noodles hot-pot twice-cooked-pork kung-pao chilli-fish",
        "japanese": "ramen udon donburi sushi tempura yakisoba onigiri",
        "korean": "bibimbap kimchi-jjigae tteokbokki bulgogi japchae gimbap",
        "vietnamese": "pho banh-mi bun-cha summer-rolls broken-rice bo-kho",
    },
    "south asian": {
        "indian": "biryani dal masala korma naan-plate paneer dosa",
        "thai": "pad-thai green-curry tom-yum larb massaman papaya-plate",
        "malay": "laksa nasi-lemak rendang roti-canai satay-rice mee-goreng",
        "nepalese": "momo thukpa thali chow-chow gundruk sekuwa",
        "sri lankan": "kottu hoppers string-hoppers lamprais sambol rice-and-curry",
    },
    "mediterranean": {
        "italian": "risotto lasagne gnocchi pizza penne ravioli minestrone",
        "greek": "gyros moussaka souvlaki spanakopita tzatziki-plate dolmades",
        "turkish": "kebab pide manti lahmacun meze borek",
        "lebanese": "shawarma falafel hummus-bowl tabbouleh kibbeh fattoush",
        "spanish": "paella tortilla patatas-bravas gazpacho croquettes albondigas",
    },
    "american": {
        "burgers": "cheeseburger slider double-burger veggie-burger patty-melt onion-rings",
        "barbecue": "brisket ribs pulled-pork burnt-ends smoked-wings cornbread",
        "mexican": "tacos burrito quesadilla enchiladas pozole nachos",
        "southern": "gumbo shrimp-and-grits biscuits catfish collard-greens hushpuppies",
        "diner": "pancakes club-sandwich meatloaf chowder milkshake hash-browns",
    },
    "european": {
        "french": "quiche ratatouille cassoulet crepes steak-frites onion-tart",
        "german": "schnitzel bratwurst spaetzle sauerbraten pretzel-board kartoffelpuffer",
        "polish": "pierogi bigos zurek golabki placki kotlet",
        "nordic": "meatballs smorrebrod gravlax herring-plate dill-potatoes fish-cakes",
        "british": "shepherds-pie fish-and-chips bangers pasty roast-plate ploughmans",
    },
    "cafe": {
        "bakery": "croissant sourdough cinnamon-roll focaccia eclair rye-loaf",
        "coffee house": "latte espresso flat-white cappuccino mocha affogato",
        "tea house": "milk-tea oolong matcha scones jasmine-pot chai",
        "ice cream": "gelato sundae sorbet waffle-cone affogato-cup parfait",
        "juice bar": "smoothie acai-bowl lemonade green-juice protein-shake fruit-cup",
    },
}
CUISINES: tuple[str, ...] = tuple(name for family in FAMILIES.values() for name in family)
FAMILY_NAMES: tuple[str, ...] = tuple(FAMILIES)
PER_FAMILY = 5
DISHES: tuple[tuple[str, ...], ...] = tuple(
    tuple(dish.replace("-", " ") for dish in dishes.split())
    for family in FAMILIES.values()
    for dishes in family.values()
)

# Words that a menu puts before a dish, by theme; the theme is what weather and mealtime pull on.
THEMES: dict[str, tuple[str, ...]] = {
    "soup": ("soupy", "broth-rich", "steaming", "brothy", "souped", "ladled", "bone-broth"),
    "iced": ("iced", "chilled", "frozen", "frosted", "ice-cold", "slushy", "cooling"),
    "porridge": ("porridge-style", "oaty", "creamy-grain", "milky", "slow-grain", "oatmeal"),
    "skewers": ("skewered", "charcoal", "street-grilled", "flame-licked", "on-a-stick", "seared"),
    "salad": ("leafy", "raw", "garden", "crunchy-green", "dressed", "light", "sprouted"),
    "stew": ("stewed", "braised", "slow-cooked", "simmered", "pot-roasted", "hearty", "casseroled"),
    "pastry": ("flaky", "buttery", "oven-warm", "glazed", "sugared", "puffed", "crusty"),
    "crispy": ("crispy", "deep-fried", "battered", "crackling", "golden-fried", "breaded"),
}
# theme: pull of (breakfast, lunch, afternoon, dinner, night) and of (clear, rain, hot, cold)
THEME_PULL: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "soup": ((-0.2, 0.1, -0.4, 0.4, 0.2), (-0.2, 1.0, -1.2, 1.0)),
    "iced": ((-0.6, 0.0, 1.0, -0.2, 0.1), (0.2, -0.6, 1.4, -1.2)),
    "porridge": ((1.8, -0.4, -0.6, -0.6, 0.0), (0.0, 0.2, -0.5, 0.5)),
    "skewers": ((-1.0, -0.4, -0.2, 0.5, 1.5), (0.4, -0.6, 0.3, -0.2)),
    "salad": ((-0.5, 1.0, 0.1, 0.0, -0.7), (0.2, -0.3, 0.8, -0.8)),
    "stew": ((-0.7, 0.2, -0.6, 1.1, 0.1), (-0.1, 0.4, -1.0, 1.1)),
    "pastry": ((1.0, -0.5, 1.0, -0.7, -0.5), (0.1, 0.2, -0.3, 0.2)),
    "crispy": ((-0.7, 0.2, 0.0, 0.1, 1.0), (-0.1, 0.6, -0.3, 0.1)),
}
INGREDIENTS: tuple[str, ...] = words_of(
    "ginger garlic chicken beef pork lamb duck prawn crab salmon tuna mushroom spinach pumpkin "
    "potato lentil chickpea bean corn tomato pepper aubergine courgette cabbage onion leek carrot "
    "coconut peanut sesame almond walnut lemon lime orange mango apple berry banana honey maple "
    "mint basil coriander dill rosemary cheese egg tofu rice"
)
BRAND_FIRST: tuple[str, ...] = words_of(
    "Golden Silver Copper Amber Jade Scarlet Indigo Maple Willow Cedar Juniper Clover Sunny Misty "
    "Windy Harbour River Lantern Market Corner Station Garden Orchard Meadow Hilltop Valley Castle "
    "Bridge Little Grand Old New Happy Quiet Lucky Royal Humble Wandering Seven Three Morning "
    "Midnight Northern Southern Eastern Western Velvet Stone"
)
BRAND_SECOND: tuple[str, ...] = words_of(
    "Spoon Fork Ladle Kettle Table Kitchen Pantry Oven Hearth Bowl Plate Basket Pepper Saffron "
    "Thyme Fox Heron Sparrow Otter Badger Crane Tiger Panda Whale Lotus Magnolia Olive Fig Tavern "
    "Canteen House Room Yard Pavilion Cellar Counter"
)
PRICE_WORDS: tuple[str, ...] = ("thrifty", "fair-priced", "mid-range", "upmarket", "lavish")
QUALITY_WORDS: tuple[str, ...] = ("plain", "decent", "well-loved", "outstanding")
DELIVERY_WORDS: tuple[str, ...] = ("within the hour", "in forty minutes", "in half an hour", "fast")
MOODS: tuple[str, ...] = words_of(
    "cosy lively calm bright rustic modern family-run bustling tucked-away relaxed candle-lit "
    "no-fuss tidy cheerful old-school airy"
)
QUERY_FORMS: tuple[str, ...] = ("{}", "{} near me", "good {}", "{} delivery", "best {} tonight")

MEALTIMES: tuple[str, ...] = ("breakfast", "lunch", "afternoon", "dinner", "night")
PLACES: tuple[str, ...] = ("home", "office", "other")
WEATHERS: tuple[str, ...] = ("clear", "rain", "hot", "cold")
DAY_TYPES: tuple[str, ...] = ("workday", "weekend", "holiday")
# Words for the four weathers that nobody used before the test period.
NEW_WEATHERS: tuple[str, ...] = ("bright spell", "thunderstorm", "heatwave", "frost")

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "mealtime": {
        "breakfast": ("breakfast time", "early in the morning", "first meal of the day"),
        "lunch": ("lunch time", "around noon", "the midday meal", "the lunch break"),
        "afternoon": ("in the afternoon", "tea time", "between lunch and dinner"),
        "dinner": ("dinner time", "early evening", "the evening meal"),
        "night": ("late at night", "after midnight snacks", "when the city sleeps"),
    },
    "place": {
        "home": ("at home", "in the living room", "at one's own door"),
        "office": ("at the office", "at work", "at the desk", "in the company building"),
        "other": ("out and about", "away from home and work", "somewhere in town"),
    },
    "weather": {
        "clear": ("clear sky", "fine and dry", "a bright clear day"),
        "rain": ("it is raining", "wet and grey with rain", "showers", "heavy rain"),
        "hot": ("very hot", "hot and sunny", "sweltering heat"),
        "cold": ("bitterly cold", "cold and windy", "freezing cold"),
        "bright spell": ("a bright spell", "fine, clear and dry for days"),
        "thunderstorm": ("a thunderstorm", "heavy rain with thunder", "stormy rain showers"),
        "heatwave": ("a heatwave", "sweltering hot for days", "extreme heat, hot and sunny"),
        "frost": ("hard frost", "freezing cold with frost", "icy and bitterly cold"),
    },
    "day": {
        "workday": ("a working day", "an ordinary weekday", "a day of work"),
        "weekend": ("the weekend", "a Saturday or Sunday", "days off at the weekend"),
        "holiday": ("a public holiday", "a festive day", "a bank holiday"),
    },
}
