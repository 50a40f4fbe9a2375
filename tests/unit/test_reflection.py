"""What reflection tells of the Open Inference Protocol."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2

from pixvec.v1 import embedding_pb2 as contract
from pixvec_server.oip import inference_pb2 as pb
from pixvec_server.rpc import reflection


def test_reflection_knows_only_what_is_served() -> None:
    pool = reflection.pool([contract.DESCRIPTOR.services_by_name["EmbeddingService"].full_name])
    with pytest.raises(KeyError):
        pool.FindServiceByName("inference.GRPCInferenceService")


def test_reflection_shows_the_protocol_under_its_public_name_alone() -> None:
    ours = contract.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
    pool = reflection.pool([ours, "inference.GRPCInferenceService"])
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    assert [method.name for method in service.methods] == [
        method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    ]
    file = descriptor_pb2.FileDescriptorProto()
    service.file.CopyToProto(file)
    assert b"pixvec" not in file.SerializeToString()
    assert service.methods_by_name["ModelInfer"].input_type.full_name == "inference.ModelInferRequest"
    tensor = pool.FindMessageTypeByName("inference.ModelInferRequest.InferInputTensor")
    contents = tensor.fields_by_name["contents"].message_type
    assert contents is not None
    assert contents.full_name == "inference.InferTensorContents"
    assert pool.FindEnumTypeByName("inference.DataType").values_by_name["TYPE_STRING"].number == 13
