"""The shipped example: each user's profile with four counts, at `GET /users/{userId}`."""

from projector.definition import Column, ColumnType, Count, Field, Format, Resource, Row, View

user_information = View(
    name="user_information",
    key="user_id",
    row=Row(
        "public.users",
        columns=(
            Column("user_id", ColumnType.BIGINT),
            Column("username", ColumnType.TEXT),
            Column("name", ColumnType.TEXT),
            Column("description", ColumnType.TEXT),
            Column("location", ColumnType.TEXT),
            Column("web_page_url", ColumnType.TEXT),
            Column("joined_date", ColumnType.TIMESTAMPTZ),
            Column("profile_image_url", ColumnType.TEXT),
            Column("background_image_url", ColumnType.TEXT),
        ),
    ),
    measures=(
        Count("tweet_count", of="public.tweets", by="user_id"),
        Count("following_count", of="public.follows", by="follower_id"),
        Count("follower_count", of="public.follows", by="followee_id"),
        Count("like_count", of="public.likes", by="user_id"),
    ),
    resource=Resource(
        "/users/{userId}",
        fields=(
            Field("userId", "user_id", Format.STRING),
            Field("username", "username"),
            Field("name", "name"),
            Field("description", "description"),
            Field("location", "location"),
            Field("webPageUrl", "web_page_url"),
            Field("joinedDate", "joined_date", Format.CALENDAR),
            Field("profileImageUrl", "profile_image_url"),
            Field("backgroundImageUrl", "background_image_url"),
            Field("tweetCount", "tweet_count"),
            Field("followingCount", "following_count"),
            Field("followerCount", "follower_count"),
            Field("likeCount", "like_count"),
        ),
    ),
)
