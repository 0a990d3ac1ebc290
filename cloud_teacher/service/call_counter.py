"""Counts every call of the Teacher service by method and status, including calls that another interceptor rejects.

Health checks are not counted: one per second would outnumber all other calls. An unknown method counts as "other", because clients
choose its name.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from edgekd.v1 import teacher_pb2
from edgekd.wire.limits import SERVICE_NAME

_HEALTH = "/grpc.health."
_METHODS = {f"/{SERVICE_NAME}/{name}": name for name in teacher_pb2.DESCRIPTOR.services_by_name["Teacher"].methods_by_name}
_OTHER = "other"
_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class CallCounter(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Calls `ended(method, code)` at the end of each call. Must be the first interceptor, or it misses calls that others reject."""

    def __init__(self, ended: Callable[[str, str], None]) -> None:
        self._ended = ended

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Return the handler of the call, wrapped so that its end is counted."""
        handler = await continuation(handler_call_details)
        if handler_call_details.method.startswith(_HEALTH):
            return handler
        method = _METHODS.get(handler_call_details.method, _OTHER)
        if handler is None:
            self._ended(method, grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._counted(method, handler.unary_stream), **serializers)
        return grpc.unary_unary_rpc_method_handler(self._counted(method, handler.unary_unary), **serializers)

    def _counted(self, method: str, behaviour: Behaviour) -> Behaviour:
        async def counted(request: Any, context: grpc.aio.ServicerContext) -> Any:
            code = grpc.StatusCode.UNKNOWN.name  # for an exception without a status
            try:
                answer = await behaviour(request, context)
                code = _name(context.code())
                return answer
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED.name
                raise
            except grpc.aio.AbortError:
                code = _name(context.code())
                raise
            finally:
                self._ended(method, code)

        return counted


def _name(code: grpc.StatusCode | int | None) -> str:
    """Return the name of a status in one of grpc.aio's forms: an enum member, a number, or None for OK."""
    number: int = code.value[0] if isinstance(code, grpc.StatusCode) else code or 0
    return _NAMES.get(number, _OTHER)
