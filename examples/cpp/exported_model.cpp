// Rates of an exported model, frame by frame, without Python.
//
//   exported_model exported/step.onnx < sound.f32 > rates.csv
//
// Reads mono samples (32-bit floats at the model's audio rate) from standard input, and writes one line per
// frame: the rate of each neuron. Needs the ONNX Runtime release for C++ (headers and library), and C++17:
//
//   c++ -std=c++17 -O2 -I $ORT/include exported_model.cpp -L $ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o exported_model

#include <onnxruntime_cxx_api.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

static size_t bytes_per_element(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return 1;
    default: throw std::runtime_error("a part of the state has a type that this program does not know");
  }
}

int main(int argc, char** argv) try {
  if (argc != 2) throw std::runtime_error("usage: exported_model step.onnx < samples.f32 > rates.csv");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "deepSTRF");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);  // a step is small
  Ort::Session session(env, argv[1], options);  // on Windows the path is wide: std::filesystem::path(argv[1]).c_str()
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

  // Inputs: "sound" (batch, 1, hop) and parts of the state, "state.<path>", all of which begin at zero.
  std::vector<std::string> input_names, output_names;
  std::vector<Ort::Value> inputs;
  std::vector<float> frame;
  for (size_t i = 0; i < session.GetInputCount(); ++i) {
    input_names.push_back(session.GetInputNameAllocated(i, allocator).get());
    Ort::TypeInfo info = session.GetInputTypeInfo(i);
    std::vector<int64_t> shape = info.GetTensorTypeAndShapeInfo().GetShape();
    ONNXTensorElementDataType type = info.GetTensorTypeAndShapeInfo().GetElementType();
    shape[0] = 1;  // one stream
    if (input_names[i] == "sound") {
      frame.resize(shape[2]);
      inputs.push_back(Ort::Value::CreateTensor<float>(memory, frame.data(), frame.size(), shape.data(), shape.size()));
    } else {
      inputs.push_back(Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type));
      size_t count = 1;
      for (int64_t size : shape) count *= size;
      std::memset(inputs[i].GetTensorMutableRawData(), 0, count * bytes_per_element(type));
    }
  }
  if (frame.empty()) throw std::runtime_error("this graph has no input named sound");

  // Outputs: "rates" (batch, neurons, 1), and "next.<path>", which is "state.<path>" of the next frame.
  std::map<std::string, size_t> place;
  for (size_t i = 0; i < input_names.size(); ++i) place[input_names[i]] = i;
  for (size_t i = 0; i < session.GetOutputCount(); ++i)
    output_names.push_back(session.GetOutputNameAllocated(i, allocator).get());

  std::vector<const char*> in, out;
  for (const std::string& name : input_names) in.push_back(name.c_str());
  for (const std::string& name : output_names) out.push_back(name.c_str());
  while (std::fread(frame.data(), sizeof(float), frame.size(), stdin) == frame.size()) {
    std::vector<Ort::Value> results =
        session.Run(Ort::RunOptions{nullptr}, in.data(), inputs.data(), inputs.size(), out.data(), out.size());
    for (size_t i = 0; i < results.size(); ++i) {
      if (output_names[i] == "rates") {
        const float* rates = results[i].GetTensorData<float>();
        const size_t neurons = results[i].GetTensorTypeAndShapeInfo().GetElementCount();
        for (size_t n = 0; n < neurons; ++n) std::printf("%s%.9g", n ? "," : "", rates[n]);
        std::printf("\n");
      } else {
        inputs[place.at("state." + output_names[i].substr(5))] = std::move(results[i]);
      }
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
