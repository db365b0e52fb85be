"""The words that made-up users are called by and write."""

from random import Random

NAMES = (
    "Ada", "Amir", "Ana", "Anke", "Aylin", "Björn", "Bola", "Carla", "Chen", "Chloé", "Dario", "Deniz", "Dmitri",
    "Elif", "Emeka", "Eva", "Fatma", "Femi", "Grace", "Hana", "Hiro", "Ida", "Igor", "Ines", "Jan", "Jomo", "Juan",
    "Kaito", "Karin", "Lars", "Leila", "Lin", "Lucía", "Mai", "Marek", "Mina", "Nia", "Nils", "Noor", "Olga", "Omar",
    "Pia", "Priya", "Quinn", "Rafael", "Rosa", "Sami", "Sofie", "Søren", "Tariq", "Thandi", "Uma", "Vera", "Wei",
    "Xenia", "Yara", "Yuki", "Zoë", "明", "さくら",
)  # fmt: skip
PLACES = (
    "Accra", "Berlin", "Bogotá", "Chicago, IL", "Dakar", "Göteborg", "Hà Nội", "İzmir", "Kraków", "Lagos", "Lima",
    "Lisboa", "Łódź", "Montréal", "Nairobi", "Oslo", "Porto", "Pune", "São Paulo", "Seoul", "Tbilisi", "Utrecht",
    "Zürich", "東京",
)  # fmt: skip
_WORDS = (
    "a", "again", "and", "at", "because", "blue", "bread", "bridge", "but", "coffee", "cold", "deploy", "every",
    "finally", "for", "friends", "garden", "green", "home", "in", "is", "kafka", "late", "long", "maps", "market",
    "morning", "music", "never", "new", "night", "of", "old", "on", "postgres", "quiet", "rain", "reading", "river",
    "slow", "small", "snow", "summer", "sunday", "tea", "the", "today", "train", "tweet", "up", "very", "warm",
    "winter", "with", "work", "writing", "yesterday", "☕", "🎉",
)  # fmt: skip


def sentence(random: Random) -> str:
    """Make up a sentence of three to fourteen words."""
    return " ".join(random.choices(_WORDS, k=random.randint(3, 14))).capitalize()
