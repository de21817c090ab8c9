//! Vertices and the edges between them.

use std::ops::Range;

/// A vertex of one [`Graph`]. Ids grow in the order in which vertices were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(u32);

impl VertexId {
    /// Position in the order in which vertices were added, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// An edge: the vertex whose result is used, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// What the operation uses it as
    pub role: String,
    /// Whose result is used
    pub vertex: VertexId,
}

/// One operation, with what people are shown of it.
#[derive(Debug, Clone)]
pub struct Vertex<O> {
    /// What is to be done; opaque to this crate
    pub operation: O,
    /// What people are shown
    pub name: String,
    /// Bytes of the source text that it comes from; opaque to this crate
    pub span: Option<Range<usize>>,
    inputs: Vec<Edge>,
}

impl<O> Vertex<O> {
    /// A vertex without inputs and span.
    pub fn new(operation: O, name: impl Into<String>) -> Vertex<O> {
        Vertex { operation, name: name.into(), span: None, inputs: Vec::new() }
    }

    /// Adds an input after those there are.
    #[must_use]
    pub fn input(mut self, role: impl Into<String>, vertex: VertexId) -> Vertex<O> {
        self.inputs.push(Edge { role: role.into(), vertex });
        self
    }

    /// Says which bytes of the source text the vertex comes from.
    #[must_use]
    pub fn span(mut self, span: Range<usize>) -> Vertex<O> {
        self.span = Some(span);
        self
    }

    /// The edges, in the order in which they were added.
    pub fn inputs(&self) -> &[Edge] {
        &self.inputs
    }
}

/// Vertices, each added after its inputs: there are no cycles.
#[derive(Debug, Clone)]
pub struct Graph<O> {
    vertices: Vec<Vertex<O>>,
}

impl<O> Default for Graph<O> {
    fn default() -> Graph<O> {
        Graph { vertices: Vec::new() }
    }
}

impl<O> Graph<O> {
    /// A graph without vertices.
    pub fn new() -> Graph<O> {
        Graph::default()
    }

    /// Adds a vertex.
    ///
    /// # Panics
    /// When an input is not a vertex of this graph, which is a bug of the caller.
    pub fn add(&mut self, vertex: Vertex<O>) -> VertexId {
        let id = VertexId(u32::try_from(self.vertices.len()).expect("a graph has fewer than 2^32 vertices"));
        assert!(
            vertex.inputs.iter().all(|input| input.vertex < id),
            "an input is not a vertex of this graph"
        );
        self.vertices.push(vertex);
        id
    }

    /// The vertex with this id.
    ///
    /// # Panics
    /// When it is not of this graph.
    pub fn vertex(&self, id: VertexId) -> &Vertex<O> {
        &self.vertices[id.index()]
    }

    /// All vertices, inputs before those that use them.
    pub fn vertices(&self) -> impl Iterator<Item = (VertexId, &Vertex<O>)> {
        (0..).map(VertexId).zip(&self.vertices)
    }

    /// How many vertices there are.
    pub fn len(&self) -> usize {
        self.vertices.len()
    }

    /// Whether there is no vertex.
    pub fn is_empty(&self) -> bool {
        self.vertices.is_empty()
    }

    /// For each vertex, whether one of the targets needs it.
    pub(crate) fn needed(&self, targets: &[VertexId]) -> Vec<bool> {
        let mut needed = vec![false; self.vertices.len()];
        for target in targets {
            needed[target.index()] = true;
        }
        for (position, vertex) in self.vertices.iter().enumerate().rev() {
            if needed[position] {
                for input in &vertex.inputs {
                    needed[input.vertex.index()] = true;
                }
            }
        }
        needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_follows_edges_down_only() {
        let mut graph = Graph::new();
        let base = graph.add(Vertex::new((), "base"));
        let left = graph.add(Vertex::new((), "left").input("root", base));
        let right = graph.add(Vertex::new((), "right").input("root", base));
        graph.add(Vertex::new((), "both").input("root", left).input("source", right));
        assert_eq!(graph.needed(&[right]), [true, false, true, false]);
        assert_eq!(graph.needed(&[left, right]), [true, true, true, false]);
        assert_eq!(graph.needed(&[]), [false; 4]);
    }

    #[test]
    #[should_panic(expected = "not a vertex of this graph")]
    fn an_input_must_exist() {
        Graph::new().add(Vertex::new((), "lonely").input("root", VertexId(0)));
    }
}
