from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    ENCODING_FLOAT32: _ClassVar[Encoding]
    ENCODING_FLOAT16: _ClassVar[Encoding]
    ENCODING_INT8: _ClassVar[Encoding]
    ENCODING_TOPK: _ClassVar[Encoding]

class InputEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INPUT_ENCODING_UNSPECIFIED: _ClassVar[InputEncoding]
    INPUT_ENCODING_PIXELS: _ClassVar[InputEncoding]
    INPUT_ENCODING_STORED: _ClassVar[InputEncoding]
    INPUT_ENCODING_FLOAT32: _ClassVar[InputEncoding]
ENCODING_UNSPECIFIED: Encoding
ENCODING_FLOAT32: Encoding
ENCODING_FLOAT16: Encoding
ENCODING_INT8: Encoding
ENCODING_TOPK: Encoding
INPUT_ENCODING_UNSPECIFIED: InputEncoding
INPUT_ENCODING_PIXELS: InputEncoding
INPUT_ENCODING_STORED: InputEncoding
INPUT_ENCODING_FLOAT32: InputEncoding

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("protocol_version", "teacher_digest", "dataset_digest", "dataset_name", "num_samples", "num_classes", "encodings", "max_batch_size", "max_window", "max_chunk_bytes", "max_stride", "input_shape", "input_encodings", "max_streams", "class_names", "classes_digest", "input_dtype")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATASET_NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_STRIDE_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    teacher_digest: str
    dataset_digest: str
    dataset_name: str
    num_samples: int
    num_classes: int
    encodings: _containers.RepeatedScalarFieldContainer[Encoding]
    max_batch_size: int
    max_window: int
    max_chunk_bytes: int
    max_stride: int
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    input_encodings: _containers.RepeatedScalarFieldContainer[InputEncoding]
    max_streams: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    classes_digest: str
    input_dtype: str
    def __init__(self, protocol_version: _Optional[int] = ..., teacher_digest: _Optional[str] = ..., dataset_digest: _Optional[str] = ..., dataset_name: _Optional[str] = ..., num_samples: _Optional[int] = ..., num_classes: _Optional[int] = ..., encodings: _Optional[_Iterable[_Union[Encoding, str]]] = ..., max_batch_size: _Optional[int] = ..., max_window: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ..., max_stride: _Optional[int] = ..., input_shape: _Optional[_Iterable[int]] = ..., input_encodings: _Optional[_Iterable[_Union[InputEncoding, str]]] = ..., max_streams: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ..., classes_digest: _Optional[str] = ..., input_dtype: _Optional[str] = ...) -> None: ...

class StreamLogitsRequest(_message.Message):
    __slots__ = ("start", "count", "batch_size", "seed", "teacher_digest", "dataset_digest", "encoding", "top_k", "stride", "input_encoding")
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEACHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    INPUT_ENCODING_FIELD_NUMBER: _ClassVar[int]
    start: int
    count: int
    batch_size: int
    seed: int
    teacher_digest: str
    dataset_digest: str
    encoding: Encoding
    top_k: int
    stride: int
    input_encoding: InputEncoding
    def __init__(self, start: _Optional[int] = ..., count: _Optional[int] = ..., batch_size: _Optional[int] = ..., seed: _Optional[int] = ..., teacher_digest: _Optional[str] = ..., dataset_digest: _Optional[str] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., top_k: _Optional[int] = ..., stride: _Optional[int] = ..., input_encoding: _Optional[_Union[InputEncoding, str]] = ...) -> None: ...

class LogitsChunk(_message.Message):
    __slots__ = ("batch_index", "row_start", "num_rows", "num_classes", "encoding", "sample_ids", "payload", "crc32", "top_k", "input_encoding", "inputs", "input_lengths", "pixels_crc32")
    BATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROW_START_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_IDS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    INPUT_ENCODING_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    PIXELS_CRC32_FIELD_NUMBER: _ClassVar[int]
    batch_index: int
    row_start: int
    num_rows: int
    num_classes: int
    encoding: Encoding
    sample_ids: _containers.RepeatedScalarFieldContainer[int]
    payload: bytes
    crc32: int
    top_k: int
    input_encoding: InputEncoding
    inputs: bytes
    input_lengths: _containers.RepeatedScalarFieldContainer[int]
    pixels_crc32: int
    def __init__(self, batch_index: _Optional[int] = ..., row_start: _Optional[int] = ..., num_rows: _Optional[int] = ..., num_classes: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., sample_ids: _Optional[_Iterable[int]] = ..., payload: _Optional[bytes] = ..., crc32: _Optional[int] = ..., top_k: _Optional[int] = ..., input_encoding: _Optional[_Union[InputEncoding, str]] = ..., inputs: _Optional[bytes] = ..., input_lengths: _Optional[_Iterable[int]] = ..., pixels_crc32: _Optional[int] = ...) -> None: ...
