// Whether a function that was declared by hand has the signature of the real header, as far as calls can tell.
#pragma once
#include <cstddef>
#include <type_traits>

#include "base/exit_gate.h"

namespace fst::test {

// Interchangeable in a call: two pointers of which both or neither are to const, two class types of equal size, the
// same integers, or an int or enum for an enum of equal size.
template <class A, class B>
constexpr bool SameKind() {
  if constexpr (std::is_void_v<A> || std::is_void_v<B>) {
    return std::is_void_v<A> && std::is_void_v<B>;
  } else if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
    using PointeeA = std::remove_pointer_t<A>;
    using PointeeB = std::remove_pointer_t<B>;
    if constexpr (std::is_pointer_v<PointeeA> && std::is_pointer_v<PointeeB>) return SameKind<PointeeA, PointeeB>();
    if constexpr (std::is_arithmetic_v<PointeeA> && std::is_arithmetic_v<PointeeB>) {
      return std::is_same_v<PointeeA, PointeeB>;
    }
    return std::is_const_v<PointeeA> == std::is_const_v<PointeeB> &&
           std::is_function_v<PointeeA> == std::is_function_v<PointeeB>;
  } else if constexpr (std::is_class_v<A> || std::is_class_v<B>) {
    return std::is_class_v<A> && std::is_class_v<B> && sizeof(A) == sizeof(B);
  } else if constexpr (std::is_enum_v<B>) {
    return sizeof(A) == sizeof(B) && (std::is_same_v<A, int> || std::is_enum_v<A>);
  } else {
    return std::is_same_v<A, B>;
  }
}

template <class Ours, class Theirs>
struct SameSignature : std::false_type {};
template <class Pointer, class Refused, class Theirs>
struct SameSignature<fst::Gated<Pointer, Refused>, Theirs> : SameSignature<Pointer, Theirs> {};
template <class R, class... A, class S, class... B>
struct SameSignature<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) != sizeof...(B)) {
      return false;
    } else {
      return SameKind<R, S>() && (SameKind<A, B>() && ...);
    }
  }();
};
static_assert(!SameSignature<int (*)(int), int (*)(size_t)>::value);
static_assert(!SameSignature<int (*)(const void*), int (*)(void*)>::value);
static_assert(!SameSignature<int (*)(int*), int (*)(size_t*)>::value);
static_assert(!SameSignature<int (*)(int, int), int (*)(int)>::value);

}  // namespace fst::test
