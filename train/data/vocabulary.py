"""What pictures and captions must agree on: named colours, and the words for places."""

BACKGROUNDS = {  # RGB
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "gray": (150, 150, 150),
    "red": (215, 40, 40),
    "orange": (255, 145, 30),
    "yellow": (255, 222, 60),
    "green": (50, 165, 75),
    "light blue": (165, 215, 250),
    "blue": (40, 90, 220),
    "purple": (140, 70, 200),
    "pink": (250, 150, 195),
    "brown": (130, 80, 45),
}
TINTS = {
    name: BACKGROUNDS[name]
    for name in ("black", "red", "orange", "yellow", "green", "blue", "purple", "pink")
}
# (left, top) of the free space, 0 at the start and 1 at the end
PLACE_WORDS = {
    "in the top left corner": (0.0, 0.0),
    "at the top": (0.5, 0.0),
    "in the top right corner": (1.0, 0.0),
    "on the left": (0.0, 0.5),
    "in the center": (0.5, 0.5),
    "on the right": (1.0, 0.5),
    "in the bottom left corner": (0.0, 1.0),
    "at the bottom": (0.5, 1.0),
    "in the bottom right corner": (1.0, 1.0),
}
