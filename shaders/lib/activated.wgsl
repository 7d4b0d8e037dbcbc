// What an activation gives.
import element

struct Activated {
    value: Element,
    slope: Element,
}
