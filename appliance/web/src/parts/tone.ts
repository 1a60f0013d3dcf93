/** How a state is meant: it becomes a colour and an icon. */
export type Tone = 'good' | 'busy' | 'attention' | 'bad' | 'neutral';
