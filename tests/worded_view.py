"""user_information with another count: tweets without words are left out, and its columns stay as they are."""

from dataclasses import replace

from projector.definition import Column, ColumnType, Count
from views import user_information as shipped

user_information = replace(
    shipped.user_information,
    measures=(
        Count(
            "tweet_count",
            of="public.tweets",
            by="user_id",
            where="text <> ''",
            columns=(Column("text", ColumnType.TEXT),),
        ),
        *shipped.user_information.measures[1:],
    ),
)
