"""Views that are alike but for their keys and rows: of one column or several, of one row or two that are joined."""

from projector.definition import Column, ColumnType, Count, Field, Format, Measure, Resource, Row, Sum, View

STATUS = Column("status", ColumnType.TEXT)
AMOUNT = Column("amount", ColumnType.NUMERIC)
NAME, BIO = Column("name", ColumnType.TEXT), Column("bio", ColumnType.TEXT)
SHOWN = (Field("name", "name"), Field("orders", "orders"), Field("spent", "spent"))


def measures(table: str, by: str | tuple[str, ...]) -> tuple[Measure, ...]:
    """Return a count, one with a filter, and a sum with it."""
    return (
        Count("orders", of=table, by=by),
        Count("paid", of=table, by=by, where="status = 'paid'", columns=(STATUS,)),
        Sum("spent", of=table, by=by, value="amount", where="status = 'paid'", columns=(STATUS, AMOUNT)),
    )


one_column = View(
    name="one_column",
    key="id",
    row=Row("public.people", (Column("id", ColumnType.BIGINT), NAME)),
    measures=measures("public.people_orders", "person"),
    resource=Resource("/people/{id}", SHOWN),
)
four_columns = View(
    name="four_columns",
    key=("shop_id", "region", "customer_id", "number"),
    row=Row(
        "public.customers",
        (
            NAME,
            Column("number", ColumnType.BIGINT),
            Column("customer_id", ColumnType.UUID),
            Column("region", ColumnType.TEXT),
            Column("shop_id", ColumnType.INTEGER),
        ),
    ),
    measures=measures("public.customers_orders", ("shop", "region", "customer", "number")),
    resource=Resource(
        "/shops/{shopId}/regions/{region}/customers/{customerId}/{number}/summary",
        (*SHOWN, Field("number", "number", Format.STRING)),
    ),
)
two_rows = View(
    name="two_rows",
    key="account_id",
    row=(
        Row("public.accounts", (Column("account_id", ColumnType.UUID), NAME)),
        Row("public.accounts_more", (BIO,), key="owner_id"),
    ),
    measures=measures("public.accounts_orders", "account"),
    resource=Resource("/accounts/{accountId}", (*SHOWN, Field("bio", "bio"))),
)
two_rows_two_columns = View(
    name="two_rows_two_columns",
    key=("region", "number"),
    row=(
        Row(
            "public.contracts",
            (Column("number", ColumnType.INTEGER), Column("region", ColumnType.TEXT), NAME),
        ),
        Row("public.contracts_more", (BIO,), key=("area", "number")),
    ),
    measures=measures("public.contracts_orders", ("area", "number")),
    resource=Resource("/contracts/{region}/{number}", (*SHOWN, Field("bio", "bio"))),
)
