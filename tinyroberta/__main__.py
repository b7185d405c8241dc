"""python -m tinyroberta"""

from .cli import command

if __name__ == "__main__":
    command()
