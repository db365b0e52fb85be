"""A second example: each customer with orders counted and money summed, at `GET /customers/{customerId}`."""

from projector.definition import Column, ColumnType, Count, Field, Format, Resource, Row, Sum, View

_PAID = (Column("status", ColumnType.TEXT),)
_AMOUNT = (Column("price", ColumnType.NUMERIC), Column("quantity", ColumnType.INTEGER))

customer_information = View(
    name="customer_information",
    key="customer_id",
    row=Row(
        "public.customers",
        columns=(Column("customer_id", ColumnType.BIGINT), Column("name", ColumnType.TEXT)),
    ),
    measures=(
        Count("order_count", of="public.orders", by="customer_id"),
        Count("open_order_count", of="public.orders", by="customer_id", where="status <> 'paid'", columns=_PAID),
        Sum(
            "spent",
            of="public.orders",
            by="customer_id",
            value="price * quantity",
            where="status = 'paid'",
            columns=(*_PAID, *_AMOUNT),
        ),
    ),
    resource=Resource(
        "/customers/{customerId}",
        fields=(
            Field("customerId", "customer_id", Format.STRING),
            Field("name", "name"),
            Field("orderCount", "order_count"),
            Field("openOrderCount", "open_order_count"),
            Field("spent", "spent"),
        ),
    ),
)
