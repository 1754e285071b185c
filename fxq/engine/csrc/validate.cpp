// Checks that make it impossible for an accepted program to leave its memory: every element and halo element of an
// arena tensor lies inside the block; operations refer to what exists. The rest is checked by each operation's Check.
#include <stdio.h>

#include "program.h"

namespace fxq {
namespace {

using Wide = __int128;  // products of three fields do not overflow

constexpr int32_t MOST = 1 << 24;  // of any extent or count
constexpr int64_t MOST_BYTES = int64_t(1) << 44;

bool within(int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; }

std::string numbered(const char* kind, int i, const char* message) {
    char text[160];
    snprintf(text, sizeof text, "%s %d: %s", kind, i, message);
    return text;
}

const char* check_header(const fxq_header& h) {
    if (h.version != FXQ_ABI_VERSION) return "the program was made for another version of the engine";
    if (!within(h.levels, 1, 8)) return "the number of levels is not between 1 and 8";
    for (int i = 0; i < h.levels; ++i) {
        if (!within(h.group[i], 1, MOST)) return "a group of images is empty or too large";
        if (i && h.group[i] % h.group[i - 1]) return "a group is no multiple of the group of the level below";
    }
    if (!within(h.tensors, 0, MOST) || !within(h.operations, 0, MOST) || !within(h.constants, 0, MOST) ||
        !within(h.inputs, 0, 4096) || !within(h.outputs, 0, 4096))
        return "a count is out of range";
    if (!within(h.arena_bytes, 0, MOST_BYTES)) return "the arena's size is out of range";
    return nullptr;
}

const char* check_extents(const fxq_tensor& t) {
    if (t.type != FXQ_U8 && t.type != FXQ_F32) return "unknown type";
    if (!within(t.height, 1, MOST) || !within(t.width, 1, MOST) || !within(t.channels, 1, MOST))
        return "an extent is not positive or too large";
    if (!within(t.top, 0, MOST) || !within(t.left, 0, MOST) || !within(t.bottom, 0, MOST) || !within(t.right, 0, MOST))
        return "a halo is negative or too large";
    if (!within(t.fill, 0, 255)) return "fill is no code";
    return nullptr;
}

const char* check_pitches(const fxq_tensor& t) {
    const int64_t size = t.type == FXQ_U8 ? 1 : 4;
    const int64_t fields[5] = {t.offset, t.image_pitch, t.row_pitch, t.pixel_pitch, t.channel_pitch};
    for (const int64_t field : fields) {
        if (!within(field, 0, MOST_BYTES)) return "an offset or pitch is negative or too large";
        if (field % size) return "an offset or pitch is not aligned to the element";
    }
    if (t.channel_pitch < size) return "the channel pitch is below an element";
    return nullptr;
}

const char* check_arena(const fxq_tensor& t, const fxq_header& h) {
    if (!within(t.level, 0, h.levels - 1)) return "unknown level";
    const Wide low = Wide(t.offset) - Wide(t.top) * t.row_pitch - Wide(t.left) * t.pixel_pitch;
    const Wide high = Wide(t.offset) + Wide(h.group[t.level] - 1) * t.image_pitch +
                      Wide(t.height - 1 + t.bottom) * t.row_pitch + Wide(t.width - 1 + t.right) * t.pixel_pitch +
                      Wide(t.channels - 1) * t.channel_pitch + (t.type == FXQ_U8 ? 1 : 4);
    if (low < 0 || high > h.arena_bytes) return "it lies outside of the arena";
    return nullptr;
}

const char* check_tensor(const fxq_tensor& t, const fxq_header& h) {
    if (const char* why = check_extents(t)) return why;
    if (t.place == FXQ_INPUT || t.place == FXQ_OUTPUT) {
        if (t.top | t.left | t.bottom | t.right) return "an input or output has a halo";
        if (!within(t.index, 0, (t.place == FXQ_INPUT ? h.inputs : h.outputs) - 1)) return "unknown input or output";
        return t.place == FXQ_OUTPUT ? check_pitches(t) : nullptr;
    }
    if (t.place != FXQ_ARENA) return "unknown place";
    if (const char* why = check_pitches(t)) return why;
    return check_arena(t, h);
}

const char* check_operands(const fxq_operation& op, const fxq_header& h, const std::vector<Tensor>& tensors) {
    if (!within(op.level, 0, h.levels - 1)) return "unknown level";
    if (!within(op.output, 0, h.tensors - 1)) return "unknown output tensor";
    const Tensor& output = tensors[op.output];
    if (output.place == FXQ_INPUT) return "it writes an input";
    if (output.place == FXQ_ARENA && output.level < op.level) return "its output holds too few images";
    for (const int32_t number : op.inputs) {
        if (number == -1) continue;
        if (!within(number, 0, h.tensors - 1)) return "unknown input tensor";
        const Tensor& input = tensors[number];
        if (input.place == FXQ_OUTPUT) return "it reads an output";
        if (input.place == FXQ_INPUT && op.code != FXQ_LOAD) return "only a load reads an input of the call";
        if (input.place == FXQ_ARENA && input.level < op.level) return "an input holds too few images";
    }
    for (const int32_t number : op.constants)
        if (number != -1 && !within(number, 0, h.constants - 1)) return "unknown constant";
    return nullptr;
}

Operation resolve(const fxq_operation& record, const std::vector<Tensor>& tensors, const fxq_constant* constants) {
    Operation op{};
    op.record = record;
    op.output = &tensors[record.output];
    for (int i = 0; i < FXQ_MAX_INPUTS; ++i)
        op.input[i] = record.inputs[i] == -1 ? nullptr : &tensors[record.inputs[i]];
    for (int i = 0; i < FXQ_MAX_CONSTANTS; ++i) {
        if (record.constants[i] == -1) continue;
        op.constant[i].data = constants[record.constants[i]].data;
        op.constant[i].bytes = constants[record.constants[i]].bytes;
    }
    return op;
}

}  // namespace

std::string validate(const fxq_header& header, const fxq_tensor* tensors, const fxq_operation* operations,
                     const fxq_constant* constants, std::vector<Tensor>* checked,
                     std::vector<Operation>* operations_out) {
    if (const char* why = check_header(header)) return why;
    for (int i = 0; i < header.constants; ++i)
        if (constants[i].bytes < 0 || (constants[i].bytes && !constants[i].data))
            return numbered("constant", i, "it has no data");
    checked->reserve(header.tensors);
    for (int i = 0; i < header.tensors; ++i) {
        if (const char* why = check_tensor(tensors[i], header)) return numbered("tensor", i, why);
        Tensor t;
        static_cast<fxq_tensor&>(t) = tensors[i];
        t.group = tensors[i].place == FXQ_ARENA ? header.group[tensors[i].level] : MOST;
        t.size = tensors[i].type == FXQ_U8 ? 1 : 4;
        checked->push_back(t);
    }
    for (int i = 0; i < header.operations; ++i) {
        if (const char* why = check_operands(operations[i], header, *checked)) return numbered("operation", i, why);
        operations_out->push_back(resolve(operations[i], *checked, constants));
    }
    return std::string();
}

}  // namespace fxq
